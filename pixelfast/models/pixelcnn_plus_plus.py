"""PixelCNN++: strided streams with shortcuts, and a mixture of logistics (Salimans et al. 2017,
https://arxiv.org/abs/1701.05517)."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads import LogisticMixture
from .base import AutoregressiveModel
from .normed import (
    Down,
    Gated,
    Normed,
    Right,
    concat_elu,
    conv,
    normalise,
    pointwise,
    shift_down,
    shift_right,
)


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

    Reference: Salimans et al. 2017, section 2 and figure 2. `preset("cifar10")` is the paper's model, of 53.66
    million parameters. Weights are normalised (Salimans & Kingma 2016); `initialise` sets them from data, as the paper
    does before training.
    """

    presets: ClassVar = {"cifar10": {"channels": 3, "hidden": 160, "blocks": 5, "mixtures": 10}}

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

        self.above = Down(channels + 1, hidden)
        self.above_left: Any = nn.ModuleList(
            [conv(channels + 1, hidden, (1, 3)), conv(channels + 1, hidden, (2, 1))]
        )
        self.down: Any = nn.ModuleList(stage(blocks, 0, 1) for _ in range(3))
        self.shrink: Any = nn.ModuleList(
            nn.ModuleList([Down(hidden, hidden, stride=2), Right(hidden, hidden, stride=2)]) for _ in range(2)
        )
        self.up: Any = nn.ModuleList(stage(blocks + (i > 0), 1, 2) for i in range(3))
        self.grow: Any = nn.ModuleList(
            nn.ModuleList([_Grow(hidden, hidden, (2, 3)), _Grow(hidden, hidden, (2, 2))]) for _ in range(2)
        )
        self.last = pointwise(hidden, self.head.outputs(channels))

    def network(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return float (N, head.outputs(C), H, W) for scaled images."""
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # so that the border can be told from a level
        u = shift_down(self.above(x))
        row, column = self.above_left
        ul = shift_down(row(F.pad(x, (1, 1, 0, 0)))) + shift_right(column(F.pad(x, (0, 0, 1, 0))))
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

    def initialise(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Scale and shift every layer so that its outputs on these images have mean 0 and variance 1.

        images, labels: as for `forward`, some hundred of them.
        """
        normalise(self, images, labels)


class _Grow(nn.Module):
    """A transposed convolution of stride 2, cut so that it looks neither below nor right."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.left = (kernel[1] - 1) // 2
        self.conv = Normed(nn.ConvTranspose2d(inputs, outputs, kernel, stride=2, output_padding=1))

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        height, width = like.shape[2:]
        return self.conv(x)[:, :, :height, self.left : self.left + width]


class _Pair(nn.Module):
    """One layer of each stream. `above`, `left`: the widths of their further inputs, in multiples of `hidden`."""

    def __init__(self, hidden: int, above: int, left: int, dropout: float, classes: int | None) -> None:
        super().__init__()
        gated = functools.partial(Gated, activation=concat_elu, dropout=dropout, classes=classes)
        self.above = gated(Down, hidden, above * hidden)
        self.left = gated(Right, hidden, left * hidden)

    def forward(
        self, u: Tensor, ul: Tensor, skip_u: Tensor | None, skip_ul: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        u = self.above(u, labels, skip_u)
        further = u if skip_ul is None else torch.cat([u, skip_ul], dim=1)
        return u, self.left(ul, labels, further)
