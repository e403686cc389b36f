"""PixelRNN: recurrent layers over the grid of pixels (van den Oord et al. 2016a, https://arxiv.org/abs/1601.06759)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..scan import Offsets, lstm_scan
from .base import AutoregressiveModel, MaskedConv2d, check_hidden, check_kernel, colour_mask
from .pixelcnn import raster_conv

# --- layers -----------------------------------------------------------------------------------------------------


class _Scan(nn.Module):
    """A recurrent layer: an input-to-state convolution, and state-to-state matrices."""

    def __init__(
        self,
        to_state: MaskedConv2d,
        hidden: int,
        neighbours: Offsets,
        cells: Offsets,
        *,
        classes: int | None,
        context: int | None = None,
        learned_edge: bool = False,
    ) -> None:
        super().__init__()
        self.to_state, self.neighbours, self.cells = to_state, neighbours, cells
        gates = (3 + len(cells)) * hidden
        scale = (len(neighbours) * hidden) ** -0.5
        self.weight = nn.Parameter(torch.randn(len(neighbours), gates, hidden) * scale)
        self.edge = nn.Parameter(torch.zeros(2, hidden)) if learned_edge else None
        self.embed = nn.Embedding(classes, gates) if classes else None
        self.context = nn.Conv2d(context, gates, 1, bias=False) if context else None
        assert to_state.bias is not None
        # Cells remember, at first (Gers et al. 2000), and do not grow from neighbour to neighbour: together their
        # forget gates let through what one of bias 1 does.
        kept = torch.sigmoid(torch.ones(())) / len(cells)
        with torch.no_grad():
            to_state.bias[hidden : (1 + len(cells)) * hidden] = kept.logit()
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=0.1)

    def forward(self, x: Tensor, labels: Tensor | None, context: Tensor | None = None) -> Tensor:
        gates = self.to_state(x)
        if self.embed is not None:
            gates = gates + self.embed(labels)[:, :, None, None]
        if self.context is not None:
            gates = gates + self.context(context)
        return lstm_scan(gates, self.weight, hidden=self.neighbours, cells=self.cells, edge=self.edge)


def _gates_mask(hidden: int, inputs: int, channels: int, gates: int, *, strict: bool = False) -> Tensor:
    return colour_mask(gates * hidden, inputs, channels, strict=strict, halves=gates)


class _Recurrent(nn.Module):
    """A layer of 2h features to 2h features, with h units."""

    def __init__(self, channels: int, hidden: int, layers: int) -> None:
        super().__init__()
        mask = colour_mask(2 * hidden, hidden, channels, strict=False)
        self.out = MaskedConv2d(hidden, 2 * hidden, mask=mask, gain=2 * layers**-0.5)


class _Row(_Recurrent):
    """Section 3.1: input-to-state 1x3, mask B; state-to-state 1x3, from the row above."""

    def __init__(
        self, channels: int, hidden: int, layers: int, classes: int | None, context: int | None
    ) -> None:
        super().__init__(channels, hidden, layers)
        own = _gates_mask(hidden, 2 * hidden, channels, 4)
        mask = torch.cat([torch.ones_like(own), own], 3)
        to_state = MaskedConv2d(2 * hidden, 4 * hidden, (1, 2), pad=(1, 0, 0, 0), mask=mask)
        above = [(-1, -1), (-1, 0), (-1, 1)]
        self.scan = _Scan(to_state, hidden, above, [(-1, 0)], classes=classes, context=context)

    def forward(self, x: Tensor, labels: Tensor | None, context: Tensor | None) -> Tensor:
        return self.out(self.scan(x, labels, context))


class _Diagonal(_Recurrent):
    """Section 3.2: input-to-state 1x1, mask B; state-to-state from above and from the side, in both directions."""

    def __init__(
        self, channels: int, hidden: int, layers: int, classes: int | None, context: int | None
    ) -> None:
        super().__init__(channels, hidden, layers)

        def scan(side: int) -> _Scan:
            mask = _gates_mask(hidden, 2 * hidden, channels, 4)
            to_state = MaskedConv2d(2 * hidden, 4 * hidden, mask=mask)
            return _Scan(
                to_state, hidden, [(-1, 0), (0, side)], [(0, side)], classes=classes, context=context
            )

        self.from_left, self.from_right = scan(-1), scan(1)

    def forward(self, x: Tensor, labels: Tensor | None, context: Tensor | None) -> Tensor:
        left, right = self.from_left(x, labels, context), self.from_right(x, labels, context)
        return self.out(left + F.pad(right, (0, 0, 1, -1)))


class _Lattice(nn.Module):
    """A layer of LSTM2d. The first reads the pixels to the left and above, and earlier colours of its own."""

    def __init__(
        self, channels: int, hidden: int, classes: int | None, learned_edge: bool, *, first: bool
    ) -> None:
        super().__init__()
        inputs = channels if first else hidden
        own = _gates_mask(hidden, inputs, channels, 5, strict=first)
        if first:
            mask = torch.zeros(5 * hidden, inputs, 2, 2, dtype=torch.bool)
            mask[:, :, 0, 1] = mask[:, :, 1, 0] = True
            mask[:, :, 1, 1] = own[:, :, 0, 0]
            to_state = MaskedConv2d(inputs, 5 * hidden, (2, 2), pad=(1, 0, 1, 0), mask=mask)
        else:
            to_state = MaskedConv2d(inputs, 5 * hidden, mask=own)
        near = [(-1, 0), (0, -1)]
        self.scan = _Scan(to_state, hidden, near, near, classes=classes, learned_edge=learned_edge)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return self.scan(x, labels)


# --- models -----------------------------------------------------------------------------------------------------


class _PixelRNN(AutoregressiveModel):
    """A mask A convolution, recurrent layers with residual connections, and two 1x1 convolutions (table 1)."""

    layer: ClassVar[type[_Row] | type[_Diagonal]]

    def __init__(
        self,
        *,
        channels: int = 1,
        levels: int = 256,
        hidden: int = 64,
        layers: int = 4,
        kernel: int = 7,
        classes: int | None = None,
        head: str = "categorical",
        context: int | None = None,
    ) -> None:
        given = {} if context is None else {"context": context}
        super().__init__(
            channels=channels,
            levels=levels,
            hidden=hidden,
            layers=layers,
            kernel=kernel,
            classes=classes,
            head=head,
            **given,
        )
        name = type(self).__name__
        check_kernel(name, kernel)
        check_hidden(name, hidden, channels)
        wide = 2 * hidden
        self.first = raster_conv(channels, wide, kernel, colour_mask(wide, channels, channels, strict=True))
        self.layers = nn.ModuleList(
            self.layer(channels, hidden, layers, classes, context) for _ in range(layers)
        )
        same = colour_mask(wide, wide, channels, strict=False)
        self.mix = MaskedConv2d(wide, wide, mask=same, gain=2**0.5)
        outputs = self.head.outputs(channels)
        self.last = MaskedConv2d(
            wide, outputs, mask=colour_mask(outputs, wide, channels, strict=False), gain=0.1
        )

    def network(self, x: Tensor, labels: Tensor | None, context: Tensor | None = None) -> Tensor:
        """Return float (N, head.outputs(C), H, W) for scaled images; `context`: float (N, context, H, W)."""
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(x, labels, context)
        return self.last(torch.relu(self.mix(torch.relu(x))))


class RowLSTM(_PixelRNN):
    """Row LSTM: a row at a time, from the three nearest states of the row above.

    It sees a triangle: one column more to either side, row by row up, besides what the first kernel adds on both sides,
    and the input-to-state convolutions on the left. The rest of the rows above is its blind spot.

    Args:
        channels: colours of a pixel.
        levels: values that a sub-pixel can take.
        hidden: units of each layer, h in the paper; the maps between the layers have 2h. At least `channels`.
        layers: number of recurrent layers.
        kernel: size of the first layer; odd, at least 3.
        classes: number of classes to condition on, or None.
        head: "categorical", or "bernoulli" for two levels.
        context: channels of a map that `network` is given besides the image, or None.

    Raises:
        TypeError: for a number that is no integer.
        ValueError: for an argument out of range.

    Reference: van den Oord, Kalchbrenner, Kavukcuoglu 2016a, section 3.1 and table 1. `preset("cifar10")` has 12
    layers of 128 units, `preset("imagenet32")` of 384 (section 5.1). Training goes a row at a time.
    """

    layer = _Row
    presets: ClassVar = {
        "cifar10": {"channels": 3, "levels": 256, "hidden": 128, "layers": 12},
        "imagenet32": {"channels": 3, "levels": 256, "hidden": 384, "layers": 12},
    }


class DiagonalBiLSTM(_PixelRNN):
    """Diagonal BiLSTM: along diagonals, in both directions, which together see nearly all earlier pixels.

    Each layer runs from the upper left and from the upper right. The second map is moved down by one row before it is
    added to the first, so that it shows no pixel to the right. It needs a whole row, so there is hardly a wavefront.
    The blind spot is the last pixel of the row above: no position of that row shows it, and of its own row only those
    whose first kernel reaches it.

    Args:
        channels: colours of a pixel.
        levels: values that a sub-pixel can take.
        hidden: units of each layer and direction, h in the paper; the maps between the layers have 2h. At least
            `channels`.
        layers: number of recurrent layers.
        kernel: size of the first layer; odd, at least 3.
        classes: number of classes to condition on, or None.
        head: "categorical", or "bernoulli" for two levels.
        context: channels of a map that `network` is given besides the image, or None.

    Raises:
        TypeError: for a number that is no integer.
        ValueError: for an argument out of range.

    Reference: van den Oord, Kalchbrenner, Kavukcuoglu 2016a, section 3.2 and table 1. `preset("mnist")` has 7 layers
    of 16 units, `preset("cifar10")` 12 of 128 (section 5.1). Training goes a diagonal at a time, H + W - 1 in all.
    """

    layer = _Diagonal
    presets: ClassVar = {
        "mnist": {"channels": 1, "levels": 2, "hidden": 16, "layers": 7, "head": "bernoulli"},
        "cifar10": {"channels": 3, "levels": 256, "hidden": 128, "layers": 12},
    }


class LSTM2d(AutoregressiveModel):
    """A two-dimensional LSTM: each state from that to the left, that above, and the pixels left and above.

    Each layer has a forget gate for either neighbour. It sees what is above and to the left; what is above and to the
    right is its blind spot.

    Args:
        channels: colours of a pixel.
        levels: values that a sub-pixel can take.
        hidden: units of each layer; at least `channels`.
        layers: number of layers; each further one reads the one before at its own position.
        learned_edge: whether the states outside of the image are learned, or zero.
        classes: number of classes to condition on, or None.
        head: "categorical", or "bernoulli" for two levels.

    Raises:
        TypeError: for a number that is no integer.
        ValueError: for an argument out of range.

    Reference: Graves, Fernandez, Schmidhuber 2007, "Multi-dimensional recurrent neural networks"; as a model of images
    Theis and Bethge 2015. Training goes a diagonal at a time.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        levels: int = 256,
        hidden: int = 64,
        layers: int = 2,
        learned_edge: bool = True,
        classes: int | None = None,
        head: str = "categorical",
    ) -> None:
        super().__init__(
            channels=channels, levels=levels, hidden=hidden, layers=layers, classes=classes, head=head
        )
        self.config["learned_edge"] = bool(learned_edge)
        check_hidden("LSTM2d", hidden, channels)
        self.layers = nn.ModuleList(
            _Lattice(channels, hidden, classes, learned_edge, first=not i) for i in range(layers)
        )
        outputs = self.head.outputs(channels)
        mask = colour_mask(outputs, hidden, channels, strict=False)
        self.last = MaskedConv2d(hidden, outputs, mask=mask, gain=0.5)

    def network(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return float (N, head.outputs(C), H, W) for scaled images."""
        for layer in self.layers:
            x = layer(x, labels)
        return self.last(x)
