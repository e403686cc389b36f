"""PixelCNN++: strided streams with shortcuts, and a mixture of logistics (Salimans et al. 2017,
https://arxiv.org/abs/1701.05517)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ..heads import LogisticMixture
from .base import AutoregressiveModel

_PRESETS: dict[str, dict[str, Any]] = {"cifar10": {"channels": 3, "hidden": 160, "blocks": 5, "mixtures": 10}}


class PixelCNNPlusPlus(AutoregressiveModel):
    """PixelCNN++: six stages of residual blocks, down to a quarter of the resolution and up again.

    Two streams: one sees the rows above, the other also its own row to the left, and all of the first. Stages on the
    way up are fed the outputs of those on the way down.

    Args:
        channels: colours of a pixel, 1 or 3.
        levels: values that a sub-pixel can take.
        hidden: width of both streams.
        blocks: residual blocks of each stage on the way down; those on the way up have one more, but the first.
        mixtures: logistics of the mixture.
        dropout: probability of dropping a feature, in training.
        classes: number of classes to condition on, or None.

    Raises:
        ValueError: for an argument out of range.

    Reference: Salimans et al. 2017, section 2 and figure 2. `preset("cifar10")` is the paper's model. Weights are
    normalised (Salimans & Kingma 2016); `initialise` sets them from data, as the paper does before training.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        levels: int = 256,
        hidden: int = 160,
        blocks: int = 5,
        mixtures: int = 10,
        dropout: float = 0.5,
        classes: int | None = None,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"[PixelCNNPlusPlus] channels must be 1 or 3, got {channels}")
        if not 0 <= dropout < 1:
            raise ValueError(f"[PixelCNNPlusPlus] dropout must be in [0, 1), got {dropout}")
        super().__init__(
            channels=channels,
            levels=levels,
            classes=classes,
            head=LogisticMixture(mixtures, levels),
            hidden=hidden,
            blocks=blocks,
            mixtures=mixtures,
        )
        self.config["dropout"] = dropout

        def stage(blocks: int, above: int, left: int) -> nn.ModuleList:
            return nn.ModuleList(_Pair(hidden, above, left, dropout, classes) for _ in range(blocks))

        self.above = _Down(channels + 1, hidden)
        self.above_left: Any = nn.ModuleList(
            [_Conv(channels + 1, hidden, (1, 3)), _Conv(channels + 1, hidden, (2, 1))]
        )
        self.down: Any = nn.ModuleList(stage(blocks, 0, 1) for _ in range(3))
        self.shrink: Any = nn.ModuleList(
            nn.ModuleList([_Down(hidden, hidden, stride=2), _Right(hidden, hidden, stride=2)])
            for _ in range(2)
        )
        self.up: Any = nn.ModuleList(stage(blocks + (i > 0), 1, 2) for i in range(3))
        self.grow: Any = nn.ModuleList(
            nn.ModuleList([_Grow(hidden, hidden, (2, 3)), _Grow(hidden, hidden, (2, 2))]) for _ in range(2)
        )
        self.last = _Conv(hidden, self.head.outputs(channels), (1, 1))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> PixelCNNPlusPlus:
        """Return a published configuration ("cifar10": 53.66 million parameters), with some arguments changed."""
        if name not in _PRESETS:
            raise ValueError(f"[PixelCNNPlusPlus] preset must be one of {', '.join(_PRESETS)}, got {name!r}")
        return cls(**(_PRESETS[name] | changes))

    def network(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return float (N, head.outputs(C), H, W) for scaled images."""
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # so that the border can be told from a level
        u = _shift_down(self.above(x))
        row, column = self.above_left
        ul = _shift_down(row(F.pad(x, (1, 1, 0, 0)))) + _shift_right(column(F.pad(x, (0, 0, 1, 0))))
        us, uls = [u], [ul]
        for i, stage in enumerate(self.down):
            if i:
                shrink_u, shrink_ul = self.shrink[i - 1]
                u, ul = shrink_u(u), shrink_ul(ul)
                us.append(u)
                uls.append(ul)
            for pair in stage:
                u, ul = pair(u, ul, None, None, labels)
                us.append(u)
                uls.append(ul)
        u, ul = us.pop(), uls.pop()
        for i, stage in enumerate(self.up):
            if i:
                grow_u, grow_ul = self.grow[i - 1]
                u, ul = grow_u(u, us[-1]), grow_ul(ul, uls[-1])
            for pair in stage:
                u, ul = pair(u, ul, us.pop(), uls.pop(), labels)
        return self.last(F.elu(ul))

    @torch.no_grad()
    def initialise(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Scale and shift every layer so that its outputs on these images have mean 0 and variance 1.

        Salimans & Kingma 2016, section 3. images, labels: as for `forward`, some hundred of them.
        """

        def normalise(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
            assert isinstance(layer, _Normed)
            mean, std = output.mean((0, 2, 3)), output.std((0, 2, 3)) + 1e-8
            scale = layer.gain / std
            magnitude = layer.conv.parametrizations.weight.original0
            magnitude.mul_(scale.view(layer.along))
            bias = layer.conv.bias
            assert bias is not None
            bias.copy_((bias - mean) * scale)
            return (output - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1)

        hooks = [m.register_forward_hook(normalise) for m in self.modules() if isinstance(m, _Normed)]
        was_training = self.training
        try:
            self.eval()
            self(images, labels)
        finally:
            self.train(was_training)
            for hook in hooks:
                hook.remove()


class _Normed(nn.Module):
    """A convolution with normalised weights; `gain` is what `initialise` scales its outputs to."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, gain: float = 1.0) -> None:
        super().__init__()
        transposed = isinstance(conv, nn.ConvTranspose2d)
        nn.init.normal_(conv.weight, std=0.05)
        self.conv: Any = weight_norm(conv, dim=1 if transposed else 0)
        self.along = (1, -1, 1, 1) if transposed else (-1, 1, 1, 1)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def _Conv(
    inputs: int, outputs: int, kernel: tuple[int, int], *, stride: int = 1, gain: float = 1.0
) -> _Normed:
    return _Normed(nn.Conv2d(inputs, outputs, kernel, stride), gain)


class _Down(nn.Module):
    """A 2x3 convolution over a row and the row above it."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        self.conv = _Conv(inputs, outputs, (2, 3), stride=stride, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (1, 1, 1, 0)))


class _Right(nn.Module):
    """A 2x2 convolution over a position, the one to the left, and those above both."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        self.conv = _Conv(inputs, outputs, (2, 2), stride=stride, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (1, 0, 1, 0)))


class _Grow(nn.Module):
    """A transposed convolution of stride 2, cut so that it looks neither below nor right."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.left = (kernel[1] - 1) // 2
        self.conv = _Normed(nn.ConvTranspose2d(inputs, outputs, kernel, stride=2, output_padding=1))

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        height, width = like.shape[2:]
        return self.conv(x)[:, :, :height, self.left : self.left + width]


class _Block(nn.Module):
    """A gated residual block. `skip` is the width of a further input, in multiples of `hidden`."""

    def __init__(
        self, conv: Callable[..., nn.Module], hidden: int, skip: int, dropout: float, classes: int | None
    ) -> None:
        super().__init__()
        self.inner = conv(2 * hidden, hidden)
        self.skip = _Conv(2 * skip * hidden, hidden, (1, 1)) if skip else None
        self.dropout = nn.Dropout(dropout)
        self.outer = conv(2 * hidden, 2 * hidden, gain=0.1)
        self.embed = nn.Embedding(classes, 2 * hidden) if classes else None
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=0.05)

    def forward(self, x: Tensor, further: Tensor | None, labels: Tensor | None) -> Tensor:
        h = self.inner(_concat_elu(x))
        if self.skip is not None and further is not None:
            h = h + self.skip(_concat_elu(further))
        h = self.outer(self.dropout(_concat_elu(h)))
        if self.embed is not None:
            h = h + self.embed(labels)[:, :, None, None]
        a, b = h.chunk(2, dim=1)
        return x + a * torch.sigmoid(b)


class _Pair(nn.Module):
    """One block of each stream."""

    def __init__(self, hidden: int, above: int, left: int, dropout: float, classes: int | None) -> None:
        super().__init__()
        self.above = _Block(_Down, hidden, above, dropout, classes)
        self.left = _Block(_Right, hidden, left, dropout, classes)

    def forward(
        self, u: Tensor, ul: Tensor, skip_u: Tensor | None, skip_ul: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        u = self.above(u, skip_u, labels)
        further = u if skip_ul is None else torch.cat([u, skip_ul], dim=1)
        return u, self.left(ul, further, labels)


def _concat_elu(x: Tensor) -> Tensor:
    """Section 2.5: the exponential linear unit of x and of -x."""
    return F.elu(torch.cat([x, -x], dim=1))


def _shift_down(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, -1))


def _shift_right(x: Tensor) -> Tensor:
    return F.pad(x, (1, -1, 0, 0))
