"""PixelSNAIL: gated residual blocks, and attention to all earlier positions (Chen et al. 2018,
https://arxiv.org/abs/1712.09763)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import heads
from .base import AutoregressiveModel
from .normed import Gated, Right, concat_elu, conv, normalise, pointwise, shift_down, shift_right

_HEADS = (heads.LogisticMixture.name, heads.Categorical.name, heads.Bernoulli.name)
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"elu": F.elu, "concat_elu": concat_elu}


class PixelSNAIL(AutoregressiveModel):
    """PixelSNAIL: blocks of gated residual layers, each followed by attention to all earlier positions.

    One stream sees what is above and to the left. After some layers each position asks all strictly earlier ones, by
    what they and the image hold there, and takes the answer in by one more layer.

    Args:
        channels: colours of a pixel, 1 or 3.
        levels: values that a sub-pixel can take.
        hidden: width of the stream.
        blocks: how often the stream attends.
        layers: gated residual layers before each attention.
        key: width of queries and keys.
        value: width of values.
        stride: attend to the maxima of stride x stride windows of keys and of values; to those windows alone whose
            pixels are all earlier.
        mixtures: logistics of the mixture, for that head.
        dropout: probability of dropping a feature, in training.
        activation: "elu" or "concat_elu", of the gated residual layers.
        classes: number of classes to condition on, or None.
        head: "logistic_mixture"; for one channel also "categorical", or "bernoulli" for two levels.

    Raises:
        TypeError: for a number that is no integer.
        ValueError: for an argument out of range.

    Reference: Chen et al. 2018, "PixelSNAIL: an improved autoregressive generative model", figures 1 and 2, and the
    authors' code (https://github.com/neocxi/pixelsnail-public), whose layers have the same shapes in the same order.
    `preset("cifar10")` and `preset("imagenet32")` are the models that it trains, of 46.18 and 46.24 million parameters;
    of 91.68 and 91.74 with "concat_elu". Weights are normalised (Salimans & Kingma 2016); `initialise` sets them from
    data, as the authors do before training.
    """

    # What `train.py` of the authors' code is called with, its defaults included.
    presets: ClassVar = {
        "cifar10": {"channels": 3, "hidden": 256, "blocks": 12, "layers": 4, "mixtures": 10, "dropout": 0.5},
        "imagenet32": {
            "channels": 3,
            "hidden": 256,
            "blocks": 12,
            "layers": 4,
            "mixtures": 32,
            "dropout": 0.0,
        },
    }

    def __init__(
        self,
        *,
        channels: int = 3,
        levels: int = 256,
        hidden: int = 256,
        blocks: int = 12,
        layers: int = 4,
        key: int = 16,
        value: int = 128,
        stride: int = 1,
        mixtures: int = 10,
        dropout: float = 0.5,
        activation: str = "elu",
        classes: int | None = None,
        head: str = "logistic_mixture",
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"[PixelSNAIL] channels must be 1 or 3, got {channels}")
        if not 0 <= dropout < 1:
            raise ValueError(f"[PixelSNAIL] dropout must be in [0, 1), got {dropout}")
        if activation not in _ACTIVATIONS:
            known = " or ".join(f'"{name}"' for name in _ACTIVATIONS)
            raise ValueError(f"[PixelSNAIL] activation must be {known}, got {activation!r}")
        known_heads = _HEADS if channels == 1 else _HEADS[:1]
        if head not in known_heads:
            known = " or ".join(f'"{name}"' for name in known_heads)
            raise ValueError(f"[PixelSNAIL] head must be {known} for channels={channels}, got {head!r}")
        mixture = head == heads.LogisticMixture.name
        super().__init__(
            channels=channels,
            levels=levels,
            classes=classes,
            head=heads.LogisticMixture(mixtures, levels) if mixture else head,
            hidden=hidden,
            blocks=blocks,
            layers=layers,
            key=key,
            value=value,
            stride=stride,
            mixtures=mixtures,
        )
        self.config |= {"dropout": dropout, "activation": activation, "head": head}
        self.stride = stride
        self.above = conv(channels + 1, hidden, (1, 3))
        self.left = conv(channels + 1, hidden, (2, 1))
        gated = functools.partial(
            Gated, activation=_ACTIVATIONS[activation], dropout=dropout, classes=classes
        )
        self.blocks = nn.ModuleList(
            _Block(channels, hidden, layers, key, value, gated) for _ in range(blocks)
        )
        self.last = pointwise(hidden, self.head.outputs(channels))

    def network(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return float (N, head.outputs(C), H, W) for scaled images."""
        height, width = x.shape[2:]
        # A channel of ones tells the border from a level.
        padded = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        above, left = self.above(F.pad(padded, (1, 1, 0, 0))), self.left(F.pad(padded, (0, 0, 1, 0)))
        h = shift_down(above) + shift_right(left)
        places, seen = _background(x), _seen(height, width, self.stride, x.device)
        for block in self.blocks:
            h = block(h, x, places, seen, self.stride, labels)
        return self.last(F.elu(h))

    def initialise(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Scale and shift every layer so that its outputs on these images have mean 0 and variance 1.

        images, labels: as for `forward`, some hundred of them.
        """
        normalise(self, images, labels)


class _Block(nn.Module):
    """Gated residual layers, then attention, and one more layer that takes in what was found."""

    def __init__(
        self, channels: int, hidden: int, layers: int, key: int, value: int, gated: Callable[..., Gated]
    ) -> None:
        super().__init__()
        asking = hidden + 2 * channels
        asked = channels + asking
        self.widths = [key, value]
        self.layers = nn.ModuleList(gated(Right, hidden) for _ in range(layers))
        self.asked = gated(pointwise, asked)
        self.key_value = pointwise(asked, key + value)
        self.asking = gated(pointwise, asking)
        self.query = pointwise(asking, key)
        self.mix = gated(pointwise, hidden, value)

    def forward(
        self, h: Tensor, x: Tensor, places: Tensor, seen: Tensor, stride: int, labels: Tensor | None
    ) -> Tensor:
        for layer in self.layers:
            h = layer(h, labels)
        asked = self.asked(torch.cat([x, h, places], dim=1), labels)
        key, value = self.key_value(asked).split(self.widths, dim=1)
        query = self.query(self.asking(torch.cat([h, places], dim=1), labels))
        return self.mix(h, labels, _attend(query, _pool(key, stride), _pool(value, stride), seen))


def _background(x: Tensor) -> Tensor:
    """Return where each position is, from -1/2 on: float (N, 2 C, H, W), C times its row and C times its column.

    Once would do; the authors' code has as many as there are colours.
    """
    rows, columns = ((torch.arange(n, dtype=x.dtype, device=x.device) - n / 2) / n for n in x.shape[2:])
    return torch.cat([rows[:, None].expand_as(x), columns.expand_as(x)], dim=1)


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """Return what each position of `query` takes of `value`: float (N, value, H, W), 0 where it sees nothing.

    `seen`: as from `_seen`. The first queries, which see nothing, are cut off, as a softmax of nothing is none. The
    authors add 1e-6 to each sum of weights, which is at least 1, for their sake; here nothing is added.
    """
    height, width = query.shape[2:]
    blind = height * width - len(seen)
    if not len(seen):
        return value.new_zeros(len(value), value.shape[1], height, width)
    q, k, v = (t.flatten(2).transpose(1, 2).unsqueeze(1) for t in (query, key, value))  # one head
    mixed = F.scaled_dot_product_attention(q[:, :, blind:], k, v, seen).squeeze(1)
    return F.pad(mixed, (0, 0, blind, 0)).transpose(1, 2).unflatten(2, (height, width))


def _seen(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """Return which windows of keys a query sees: bool (queries, windows), from the first query on that sees any.

    A window is seen by the positions after its last pixel, so the queries that see none come first.
    """
    rows, columns = _ends(height, stride), _ends(width, stride)
    last = torch.tensor(rows, device=device)[:, None] * width + torch.tensor(columns, device=device)
    first = rows[0] * width + columns[0] + 1
    return last.flatten() < torch.arange(first, height * width, device=device)[:, None]


def _margins(size: int, stride: int) -> tuple[int, int]:
    """Return how far windows reach beyond an axis, before and after it, where `size` does not fill them."""
    before = -size % stride // 2
    return before, -size % stride - before


def _ends(size: int, stride: int) -> list[int]:
    """Return the last position of each window along an axis."""
    before, after = _margins(size, stride)
    return [min(stop, size) - 1 for stop in range(stride - before, size + after + 1, stride)]


def _pool(x: Tensor, stride: int) -> Tensor:
    """Return the maxima of the windows that end at `_ends`."""
    if stride == 1:
        return x
    (top, bottom), (left, right) = (_margins(size, stride) for size in x.shape[2:])
    if top or bottom or left or right:
        x = F.pad(x, (left, right, top, bottom), value=-torch.inf)
    return F.max_pool2d(x, stride)
