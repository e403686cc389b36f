"""Gated PixelCNN: two stacks and no blind spot (van den Oord et al. 2016b, https://arxiv.org/abs/1606.05328)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import AutoregressiveModel, MaskedConv2d, check_hidden, check_kernel, colour_mask

# A gate's output tanh(a) * sigmoid(b) has this mean square when a and b are standard normal.
_GATE_POWER = 0.115


class GatedPixelCNN(AutoregressiveModel):
    """Gated PixelCNN: a vertical stack sees the rows above, a horizontal stack its own row to the left.

    Args:
        channels: colours of a pixel.
        levels: values that a sub-pixel can take.
        hidden: width of both stacks; at least `channels`.
        layers: number of gated layers.
        kernel: size of the first layer; odd, at least 3.
        classes: number of classes to condition on, or None.
        head: "categorical", or "bernoulli" for two levels.
        skew: at least 1: a pixel sees at most skew * m - 1 columns to the right, m rows up, so that a wavefront of
            this skew draws an image in W + skew * (H - 1) steps a colour. None is the network of the paper, and so
            is any skew from kernel // 2 + layers on.

    Within a row, all layers together may look skew - 1 columns to the right; the first ones do. A row of a vertical
    kernel that would reach further is moved to the left until it does not, so that the number of live weights is the
    same for every skew. Of a 2x3 kernel and its own position o:

        x x x              x x x
        x o x  becomes   x x o

    Raises:
        TypeError: for a number that is no integer.
        ValueError: for an argument out of range.

    Reference: van den Oord et al. 2016b, "Conditional image generation with PixelCNN decoders", equation 2
    and figure 2; class conditioning is equation 3, with a bias in place of a product.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        levels: int = 256,
        hidden: int = 64,
        layers: int = 12,
        kernel: int = 7,
        classes: int | None = None,
        head: str = "categorical",
        skew: int | None = None,
    ) -> None:
        wedge = {} if skew is None else {"skew": skew}
        super().__init__(
            channels=channels,
            levels=levels,
            hidden=hidden,
            layers=layers,
            kernel=kernel,
            classes=classes,
            head=head,
            **wedge,
        )
        check_kernel("GatedPixelCNN", kernel)
        check_hidden("GatedPixelCNN", hidden, channels)
        skew = kernel // 2 + layers if skew is None else skew
        self.layers = nn.ModuleList()
        right = skew - 1  # columns that the layers to come may look to the right in their own row
        for i in range(layers):
            step = min(right, 1 if i else kernel // 2)
            right -= step
            gain = layers**-0.5 if i else 1.0
            self.layers.append(_Layer(channels, hidden, None if i else kernel, classes, step, skew, gain))
        same = colour_mask(hidden, hidden, channels, strict=False)
        self.mix = MaskedConv2d(hidden, hidden, mask=same, gain=2**0.5)
        outputs = self.head.outputs(channels)
        self.last = MaskedConv2d(
            hidden, outputs, mask=colour_mask(outputs, hidden, channels, strict=False), gain=0.1
        )

    def network(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return float (N, head.outputs(C), H, W) for scaled images."""
        v = h = x
        for i, layer in enumerate(self.layers):
            above, h = layer(v, h, labels)
            if i + 1 < len(self.layers):
                v = _gate(above)
        return self.last(torch.relu(self.mix(torch.relu(h))))


class _Layer(nn.Module):
    """One gated layer, figure 2 of the paper. The first has a `kernel`, as it reads the image."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel: int | None,
        classes: int | None,
        right: int,
        skew: int,
        gain: float,
    ) -> None:
        super().__init__()
        self.is_first = kernel is not None
        inputs = hidden if kernel is None else channels
        wide = 2 * hidden
        power = 1.0 if kernel is not None else _GATE_POWER
        if kernel is None:
            rows, columns, left = 2, 3, 1
        else:
            rows, columns, left = kernel // 2, kernel, kernel // 2
        taps, before = _wedge(rows, columns, right, skew)
        height, width = taps.shape
        self.vertical = MaskedConv2d(
            inputs,
            wide,
            (height, width),
            pad=(before, width - before - 1, height - 1, 0),
            mask=taps,
            gain=power**-0.5,
        )
        centre = colour_mask(wide, inputs, channels, strict=kernel is not None, halves=2)
        own = bool(centre.any())
        mask = torch.ones(wide, inputs, 1, left + own, dtype=torch.bool)
        if own:
            mask[:, :, :, left:] = centre
        self.horizontal = MaskedConv2d(
            inputs, wide, (1, left + own), pad=(left, 0 if own else -1, 0, 0), mask=mask, gain=0.5**0.5
        )
        # No bias: so it may run before the shift, on maps that are not padded.
        self.link = MaskedConv2d(wide, wide, bias=False, gain=0.5**0.5)
        self.out = MaskedConv2d(
            hidden,
            hidden,
            mask=colour_mask(hidden, hidden, channels, strict=False),
            gain=gain * _GATE_POWER**-0.5,
        )
        self.embed_vertical = self.embed_horizontal = None
        if classes:
            self.embed_vertical, self.embed_horizontal = (
                nn.Embedding(classes, wide),
                nn.Embedding(classes, wide),
            )
            nn.init.normal_(self.embed_vertical.weight, std=0.1)
            nn.init.normal_(self.embed_horizontal.weight, std=0.1)

    def forward(self, v: Tensor, h: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        above = self.vertical(
            v, condition=None if self.embed_vertical is None else self.embed_vertical(labels)
        )
        # The vertical stack sees its own row too; one row further down, that is strictly above.
        shifted = F.pad(self.link(above), (0, 0, 1, -1))
        if self.embed_horizontal is not None:
            shifted = shifted + self.embed_horizontal(labels)[:, :, None, None]
        gated = self.horizontal(h, condition=shifted, gate=True)
        return above, self.out(gated, residual=None if self.is_first else h)


def _wedge(rows: int, columns: int, right: int, skew: int) -> tuple[Tensor, int]:
    """Return the live taps of a vertical kernel, and how many columns it has to the left of its own position.

    Its own row, the last, ends at most `right` columns to the right, and a row j above it at most skew * j further on.
    A row that would not is moved to the left: bool (rows, columns and as many as the rows are moved apart).
    """
    ends = [min(columns // 2, right + skew * j) for j in reversed(range(rows))]
    before = columns - 1 - ends[-1]
    taps = torch.zeros(rows, before + 1 + ends[0], dtype=torch.bool)
    for row, end in zip(taps, ends, strict=True):
        row[before + 1 + end - columns : before + 1 + end] = True
    return taps, before


def _gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)
