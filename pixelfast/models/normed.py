"""Weight-normalised convolutions that see only what is above and to the left, and their initialisation from data
(Salimans & Kingma 2016, https://arxiv.org/abs/1602.07868)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class Normed(nn.Module):
    """A convolution with normalised weights; `gain` is what `normalise` scales its outputs to."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, gain: float = 1.0) -> None:
        super().__init__()
        transposed = isinstance(conv, nn.ConvTranspose2d)
        nn.init.normal_(conv.weight, std=0.05)
        self.conv: Any = weight_norm(conv, dim=1 if transposed else 0)
        self.along = (1, -1, 1, 1) if transposed else (-1, 1, 1, 1)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@torch.no_grad()
def normalise(model: nn.Module, images: Tensor, labels: Tensor | None = None) -> None:
    """Scale and shift every `Normed` so that its outputs on these images have mean 0 and variance gain^2.

    What is constant on them, as at a single position that sees nothing, is only shifted.

    Salimans & Kingma 2016, section 3. images, labels: as `model` takes them, some hundred of them.
    """

    def scale(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        assert isinstance(layer, Normed)
        mean, std = output.mean((0, 2, 3)), output.std((0, 2, 3), correction=0)
        scale = torch.where(std > 1e-6, layer.gain / std, 1.0)
        magnitude = layer.conv.parametrizations.weight.original0
        magnitude.mul_(scale.view(layer.along))
        bias = layer.conv.bias
        assert bias is not None
        bias.copy_((bias - mean) * scale)
        return (output - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1)

    hooks = [m.register_forward_hook(scale) for m in model.modules() if isinstance(m, Normed)]
    was_training = model.training
    try:
        model.eval()
        model(images, labels)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()


# --- convolutions -----------------------------------------------------------------------------------------------


def conv(inputs: int, outputs: int, kernel: tuple[int, int], *, stride: int = 1, gain: float = 1.0) -> Normed:
    return Normed(nn.Conv2d(inputs, outputs, kernel, stride), gain)


def pointwise(inputs: int, outputs: int, *, gain: float = 1.0) -> Normed:
    return conv(inputs, outputs, (1, 1), gain=gain)


class Down(nn.Module):
    """A 2x3 convolution over a row and the row above it."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, (2, 3), stride=stride, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (1, 1, 1, 0)))


class Right(nn.Module):
    """A 2x2 convolution over a position, the one to the left, and those above both."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, (2, 2), stride=stride, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (1, 0, 1, 0)))


def shift_down(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, -1))


def shift_right(x: Tensor) -> Tensor:
    return F.pad(x, (1, -1, 0, 0))


# --- layers of them ---------------------------------------------------------------------------------------------


def concat_elu(x: Tensor) -> Tensor:
    """The exponential linear unit of x and of -x (Salimans et al. 2017, section 2.5)."""
    return F.elu(torch.cat([x, -x], dim=1))


class Gated(nn.Module):
    """A gated residual layer of two convolutions that `layer` makes. `further` is the width of a second input, or 0."""

    def __init__(
        self,
        layer: Callable[..., nn.Module],
        width: int,
        further: int = 0,
        *,
        activation: Callable[[Tensor], Tensor],
        dropout: float,
        classes: int | None,
    ) -> None:
        super().__init__()
        self.activation = activation
        times = 2 if activation is concat_elu else 1
        self.inner = layer(times * width, width)
        self.skip = pointwise(times * further, width) if further else None
        self.dropout = nn.Dropout(dropout)
        self.outer = layer(times * width, 2 * width, gain=0.1)
        self.embed = nn.Embedding(classes, 2 * width) if classes else None
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=0.05)

    def forward(self, x: Tensor, labels: Tensor | None, further: Tensor | None = None) -> Tensor:
        h = self.inner(self.activation(x))
        if self.skip is not None and further is not None:
            h = h + self.skip(self.activation(further))
        h = self.outer(self.dropout(self.activation(h)))
        if self.embed is not None:
            h = h + self.embed(labels)[:, :, None, None]
        a, b = h.chunk(2, dim=1)
        return x + a * torch.sigmoid(b)
