"""A well-made incremental sampler in plain PyTorch, the baseline that a careful user would write by hand.

Every layer keeps its feature map; each pixel computes only the new column of each, as two small matrix
products over the live taps (the rows above, and its own row up to the centre), which read the caches in
place. A colour computes only the channels of its own group. The vertical stack runs once per row. So each
element is computed once, as in pixelfast: what differs is what every one of those small steps costs.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelfast.models import AutoregressiveModel, GatedPixelCNN, PixelCNN
from pixelfast.models.base import MaskedConv2d


class Cached(Protocol):
    """What `sample` and `logits` need: the scaled image, and the output of one sub-pixel after another."""

    image: _Map

    def start_row(self, y: int) -> None:
        """Compute what depends on the rows above y only."""

    def column(self, y: int, x: int, colour: int) -> Tensor:
        """Return float (N, outputs of that colour), once all sub-pixels before it are in `image`."""


def knows(model: AutoregressiveModel) -> bool:
    """Return whether `cached` takes such a model: those whose kernels are centred."""
    return isinstance(model, PixelCNN | GatedPixelCNN) and model.config.get("skew") is None


def cached(
    model: AutoregressiveModel, n: int, height: int, width: int, labels: Tensor | None = None
) -> Cached:
    """Return empty caches for n images of a PixelCNN or GatedPixelCNN.

    labels: int64 (N,), iff the model has classes.
    """
    if isinstance(model, PixelCNN):
        return _CachedPixelCNN(model, n, height, width, labels)
    if isinstance(model, GatedPixelCNN):
        return _CachedGatedPixelCNN(model, n, height, width, labels)
    raise ValueError(f"[cached] model must be a PixelCNN or a GatedPixelCNN, got {type(model).__name__}")


@torch.inference_mode()
def sample(
    model: AutoregressiveModel, n: int, height: int, width: int, *, labels: Tensor | None = None
) -> Tensor:
    """Draw images with PyTorch's own random numbers: int64 (N, C, H, W)."""
    images = torch.zeros(n, model.channels, height, width, dtype=torch.int64)
    draw_rows(model, cached(model, n, height, width, labels), images, range(height))
    return images


@torch.inference_mode()
def draw_rows(model: AutoregressiveModel, state: Cached, images: Tensor, rows: range) -> None:
    """Draw some rows of `images`, int64 (N, C, H, W), in place. `state` must hold the rows above them."""
    table = _scaled_levels(model)
    for y in rows:
        state.start_row(y)
        for x in range(images.shape[3]):
            for colour in range(model.channels):
                output = state.column(y, x, colour)
                if output.shape[1] == 1:
                    level = torch.bernoulli(output.sigmoid())[:, 0].long()
                else:
                    level = torch.multinomial(output.softmax(1), 1)[:, 0]
                images[:, colour, y, x] = level
                state.image.at(y, x)[:, colour] = table[level]


@torch.inference_mode()
def outputs(model: AutoregressiveModel, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return what `model.network` returns for these images, pixel by pixel: float (N, outputs, H, W)."""
    n, colours, height, width = images.shape
    state = cached(model, n, height, width, labels)
    table = _scaled_levels(model)
    result = torch.empty(n, model.head.outputs(colours), height, width)
    for y in range(height):
        state.start_row(y)
        for x in range(width):
            for colour in range(colours):
                output = state.column(y, x, colour)
                block = slice(colour * output.shape[1], (colour + 1) * output.shape[1])
                result[:, block, y, x] = output
                state.image.at(y, x)[:, colour] = table[images[:, colour, y, x].long()]
    return result


class _Map:
    """A feature map, float (N, rows, columns, channels), with zeros where a tap falls outside."""

    def __init__(self, n: int, height: int, width: int, channels: int, above: int, side: int) -> None:
        self.above, self.side, self.channels = above, side, channels
        self.data = torch.zeros(n, height + above, width + 2 * side, channels)
        self.flat = self.data.flatten(2)

    def at(self, y: int, x: int) -> Tensor:
        """Return the column at (y, x), to read or to write: (N, channels)."""
        return self.data[:, y + self.above, x + self.side]

    def span(self, y: int, x: int, count: int, rows: int = 1) -> Tensor:
        """Return `count` numbers of each of some rows, from column x on, in place: (N, rows * count)."""
        y, x = y + self.above, (x + self.side) * self.channels
        return self.flat[:, y : y + rows, x : x + count].flatten(1)

    def rows(self, y: int, count: int) -> Tensor:
        """Return whole rows with their padding, in place: (N, channels, count, columns)."""
        return self.data[:, y + self.above : y + self.above + count].permute(0, 3, 1, 2)


class _Column:
    """One masked convolution at one position: per colour, the weights of the live taps as matrices.

    The rows above are read as one block, the own row up to the last live input as another.
    """

    def __init__(self, conv: MaskedConv2d, colours: int, *, halves: int = 1) -> None:
        weight = _weight(conv)
        outputs, inputs, rows, columns = weight.shape
        self.left, _, self.up, _ = conv.pad
        self.width = columns * inputs
        taps = weight.permute(2, 3, 1, 0)  # rows, columns, inputs, outputs
        bias = torch.zeros(outputs) if conv.bias is None else conv.bias.detach()
        self.above, self.own, self.bias = [], [], []
        for group in _groups(outputs, colours, halves):
            own = taps[rows - 1].flatten(0, 1)[:, group]
            live = own.any(1).nonzero()
            self.own.append(own[: int(live[-1]) + 1 if len(live) else 0].contiguous())
            self.above.append(taps[: rows - 1].flatten(0, 2)[:, group].contiguous())
            self.bias.append(bias[group])

    def __call__(self, source: _Map, y: int, x: int, colour: int) -> Tensor:
        """Return float (N, outputs of that colour)."""
        weight = self.own[colour]
        result = torch.addmm(self.bias[colour], source.span(y, x - self.left, len(weight)), weight)
        if self.up:
            above = source.span(y - self.up, x - self.left, self.width, self.up)
            result = result.addmm_(above, self.above[colour])
        return result


class _CachedPixelCNN:
    def __init__(self, model: PixelCNN, n: int, height: int, width: int, labels: Tensor | None) -> None:
        hidden, colours = model.config["hidden"], model.channels
        half = model.config["kernel"] // 2
        self.image = _Map(n, height, width, colours, half, half)
        self.spans = [slice(int(g[0]), int(g[-1]) + 1) for g in _groups(hidden, colours)]
        self.first = _Column(model.first, colours)
        # A layer reads relu of the residual stream, so that is what is kept.
        convs: Any = model.layers
        self.layers = [(_Column(conv, colours), _Map(n, height, width, hidden, 1, 1)) for conv in convs]
        self.top = [
            (_Column(conv, colours), _Map(n, 1, width, hidden, 0, 0)) for conv in (model.mix, model.last)
        ]
        self.biases = None
        if model.embeddings:
            rows = [embedding(labels).detach() for embedding in model.embeddings]
            self.biases = [[row[:, span] for span in self.spans] for row in rows]

    def start_row(self, y: int) -> None:
        pass

    def column(self, y: int, x: int, colour: int) -> Tensor:
        span = self.spans[colour]
        stream = self.first(self.image, y, x, colour)
        if self.biases is not None:
            stream += self.biases[0][colour]
        for i, (layer, source) in enumerate(self.layers, 1):
            source.at(y, x)[:, span] = stream.relu()
            stream += layer(source, y, x, colour)
            if self.biases is not None:
                stream += self.biases[i][colour]
        for conv, source in self.top:
            source.at(0, x)[:, span] = stream.relu()
            stream = conv(source, 0, x, colour)
        return stream


class _CachedGatedPixelCNN:
    def __init__(self, model: GatedPixelCNN, n: int, height: int, width: int, labels: Tensor | None) -> None:
        hidden, colours = model.config["hidden"], model.channels
        half = model.config["kernel"] // 2
        self.image = _Map(n, height, width, colours, half, half)
        self.spans = [slice(int(g[0]), int(g[-1]) + 1) for g in _groups(hidden, colours)]
        self.layers = []
        for i, layer in enumerate(model.layers):
            vertical, horizontal = (
                _Map(n, height, width, hidden, 1, 1) if i else self.image for _ in range(2)
            )
            self.layers.append(_CachedLayer(layer, colours, vertical, horizontal, n, width, labels))
        self.top = [
            (_Column(conv, colours), _Map(n, 1, width, hidden, 0, 0)) for conv in (model.mix, model.last)
        ]

    def start_row(self, y: int) -> None:
        if y == 0:
            return
        for i, layer in enumerate(self.layers):
            vertical = layer.row_above(y - 1)
            if i + 1 < len(self.layers):
                target = self.layers[i + 1].vertical_map
                target.rows(y - 1, 1)[:, :, 0, target.side : -target.side] = vertical

    def column(self, y: int, x: int, colour: int) -> Tensor:
        span = self.spans[colour]
        stream = self.layers[0].column(y, x, colour, span)
        for layer in self.layers[1:]:
            layer.horizontal_map.at(y, x)[:, span] = stream
            stream = stream + layer.column(y, x, colour, span)
        for conv, source in self.top:
            source.at(0, x)[:, span] = stream.relu()
            stream = conv(source, 0, x, colour)
        return stream


class _CachedLayer:
    """One gated layer: the vertical stack by rows, the horizontal stack by columns."""

    def __init__(
        self,
        layer: Any,
        colours: int,
        vertical_map: _Map,
        horizontal_map: _Map,
        n: int,
        width: int,
        labels: Tensor | None,
    ) -> None:
        self.vertical_map, self.horizontal_map = vertical_map, horizontal_map
        self.kernel = _weight(layer.vertical).contiguous(memory_format=torch.channels_last)
        self.bias = layer.vertical.bias.detach()
        self.link = _weight(layer.link)[:, :, 0, 0]
        self.horizontal = _Column(layer.horizontal, colours, halves=2)
        self.out = _Column(layer.out, colours)
        wide = len(self.kernel)
        self.gates = _Map(n, 1, width, wide // 2, 0, 0)
        self.vertical_bias = self.horizontal_bias = torch.zeros(1, wide)
        if layer.embed_vertical is not None:
            self.vertical_bias = layer.embed_vertical(labels).detach()
            self.horizontal_bias = layer.embed_horizontal(labels).detach()
        self.groups = _groups(wide, colours, 2)
        # What the row above and the class add to the horizontal stack, per colour: (N, W, outputs).
        self.shifted = [self.horizontal_bias[:, None, g].expand(n, width, -1) for g in self.groups]

    def row_above(self, y: int) -> Tensor:
        """Compute row y of the vertical stack and what row y + 1 takes from it. Returns (N, hidden, W)."""
        count = self.kernel.shape[2]
        rows = F.conv2d(self.vertical_map.rows(y - count + 1, count), self.kernel, self.bias)[:, :, 0]
        rows = rows + self.vertical_bias[:, :, None]
        linked = rows.transpose(1, 2) @ self.link.T + self.horizontal_bias[:, None]
        self.shifted = [linked[:, :, g] for g in self.groups] if len(self.groups) > 1 else [linked]
        return _gate(rows)

    def column(self, y: int, x: int, colour: int, span: slice) -> Tensor:
        left = self.horizontal(self.horizontal_map, y, x, colour)
        left += self.shifted[colour][:, x]
        self.gates.at(0, x)[:, span] = _gate(left)
        return self.out(self.gates, 0, x, colour)


def _gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()


def _weight(conv: MaskedConv2d) -> Tensor:
    return (conv.weight if conv.mask is None else conv.weight * conv.mask).detach()


def _groups(channels: int, colours: int, halves: int = 1) -> list[Tensor]:
    """Return the channels of each colour, as `pixelfast.models.base.colour_mask` deals them out."""
    half = channels // halves
    colour = (torch.arange(half) * colours // half).repeat(halves)
    return [(colour == c).nonzero()[:, 0] for c in range(colours)]


def _scaled_levels(model: AutoregressiveModel) -> Tensor:
    """Return the network's input for each level: float (levels,)."""
    return model.scale(torch.arange(model.levels))
