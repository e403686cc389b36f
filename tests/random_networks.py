"""Random small causal networks, for hypothesis.

A network is a list of steps; a step takes values made before. A value is a tensor, and what it may depend on:

    "image"   channel of colour g at (y, x): sub-pixels up to (y, x, g), itself included
    "causal"  channel of colour g at (y, x): sub-pixels strictly before (y, x, g)
    "rows"    channel at (y, x): all pixels of rows up to y
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import Case, loud

import pixelfast as pf


@dataclass(frozen=True)
class Value:
    kind: str
    colours: tuple[int, ...]  # of each channel

    def __len__(self) -> int:
        return len(self.colours)


class Masked(nn.Module):
    """A convolution with a kernel of any size, anchored anywhere; the mask lets it see what is earlier.

    An anchor beyond the kernel makes a shift: its padding crops.
    """

    def __init__(
        self,
        value: Value,
        colours: tuple[int, ...],
        kernel: tuple[int, int],
        anchor: tuple[int, int],
        dilation: int,
    ) -> None:
        super().__init__()
        own = np.array(value.colours)[None] < np.array(colours)[:, None]
        if value.kind == "causal":
            own |= np.array(value.colours)[None] == np.array(colours)[:, None]
        mask = torch.zeros(len(colours), len(value), *kernel)
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                offset = i - anchor[0], j - anchor[1]
                mask[:, :, i, j] = torch.from_numpy(own) if offset == (0, 0) else float(offset < (0, 0))
        (kh, kw), (ay, ax), d = kernel, anchor, dilation
        self.pads = (ax * d, (kw - 1 - ax) * d, ay * d, (kh - 1 - ay) * d)
        self.dilation = dilation
        self.register_buffer("mask", mask)
        self.weight = nn.Parameter(torch.randn(mask.shape) / math.sqrt(max(1, mask[0].sum().item())))
        self.bias = nn.Parameter(torch.zeros(len(colours)))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, self.pads), self.weight * self.mask, self.bias, dilation=self.dilation)


class Rows(nn.Module):
    """A convolution that sees whole rows, none below its own."""

    def __init__(self, channels: int, outputs: int, kernel: tuple[int, int], dilation: int) -> None:
        super().__init__()
        self.pads = (dilation * (kernel[1] // 2),) * 2 + (dilation * (kernel[0] - 1), 0)
        self.conv = nn.Conv2d(channels, outputs, kernel, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pads))


class Blocks(nn.Module):
    """Strided down and up again, then seen below the blocks."""

    def __init__(self, channels: int, outputs: int, height: int, kernel: int) -> None:
        super().__init__()
        self.pads = (kernel - 2, 1, kernel - 2, 1)
        self.down = nn.Conv2d(channels, 2, kernel, stride=2)
        self.up = nn.ConvTranspose2d(2, outputs, kernel, stride=2)
        self.by = min(2, height)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.down(F.pad(x, self.pads)).tanh())[:, :, : x.shape[2], : x.shape[3]]
        return F.pad(y, (0, 0, self.by, -self.by))


class Pad(nn.Module):
    def __init__(self, *pads: int) -> None:
        super().__init__()
        self.pads = pads

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pads)


class Apply(nn.Module):
    """A function of tensors by its name in FUNCTIONS."""

    def __init__(self, name: str, *arguments: int) -> None:
        super().__init__()
        self.name, self.arguments = name, arguments

    def forward(self, *x: Tensor) -> Tensor:
        return FUNCTIONS[self.name](*x, *self.arguments)


FUNCTIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "silu": F.silu,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
    "clamp": lambda x: x.clamp(-0.5, 1),
    "neg": torch.neg,
    "abs": torch.abs,
    "add": lambda a, b, n: a[:, :n] + b[:, :n],
    "sub": lambda a, b, n: a[:, :n] - b[:, :n],
    "mul": lambda a, b, n: torch.tanh(a[:, :n]) * b[:, :n],
    "max": lambda a, b, n: torch.maximum(a[:, :n], b[:, :n]),
    "min": lambda a, b, n: torch.minimum(a[:, :n], b[:, :n]),
    "gate": lambda x, n: torch.tanh(x[:, :n]) * torch.sigmoid(x[:, n : 2 * n]),
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "every": lambda x, start: x[:, start::2],
    "shuffle": lambda x: x.view(x.shape[0], 2, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    "flip": lambda x: x.flip(1),
    "cat": lambda *x: torch.cat(x, 1),
}
UNARY = [name for name in FUNCTIONS if FUNCTIONS[name].__name__ == name or name in ("clamp", "neg", "abs")]
BINARY = ["add", "sub", "mul", "max", "min"]


class Constants(nn.Module):
    """Values of each pixel, and of each channel."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(1 + 0.3 * torch.randn(height, width))
        self.shift = nn.Parameter(0.3 * torch.randn(channels, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Pixelwise(nn.Module):
    """A linear layer over the last axis, masked by colours."""

    def __init__(self, value: Value) -> None:
        super().__init__()
        colours = torch.tensor(value.colours)
        self.register_buffer("mask", (colours[None] <= colours[:, None]).float())
        self.weight = nn.Parameter(torch.randn(self.mask.shape) / math.sqrt(len(value)))
        self.bias = nn.Parameter(torch.zeros(len(value)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight * self.mask, self.bias).permute(0, 3, 1, 2)


class Embed(nn.Module):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes, channels)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return x + self.table(labels)[:, :, None, None]


KERNELS = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 3), (3, 2)]
STEPS = (
    "conv",
    "rows",
    "blocks",
    "down",
    "right",
    "unary",
    "binary",
    "gate",
    "channels",
    "cat",
    "constants",
    "linear",
    "labels",
)


class RandomNetwork(nn.Module):
    """The network that a list of steps (name, i, j, k) describes; any such list makes a causal one.

    The integers choose operands and forms, each modulo what there is.
    """

    def __init__(self, shape: tuple[int, int, int], levels: int, bernoulli: bool, steps: list[tuple]) -> None:
        super().__init__()
        torch.manual_seed(len(steps))
        self.recipe = f"RandomNetwork({shape}, {levels}, {bernoulli}, {steps})"
        colours, self.height, self.width = shape
        self.shape, self.levels, self.channels = shape, levels, colours
        self.head = pf.heads.Bernoulli() if bernoulli else pf.heads.Categorical(levels)
        self.classes = 3 if any(step[0] == "labels" for step in steps) else None
        self.values = [Value("image", tuple(range(colours)))]
        self.steps = nn.ModuleList()
        self.operands: list[tuple[int, ...]] = []
        for name, i, j, k in [("conv", 0, 2, 5), *steps]:
            getattr(self, f"_{name}")(i, j, k)
        causal = self._of("causal")
        inputs = causal[-2:]
        value = Value("causal", sum((self.values[i].colours for i in inputs), ()))
        self._add(Apply("cat"), inputs, value)
        count = colours if bernoulli else colours * levels
        self.interleaved = len(steps) % 2 == 0
        own = [c % colours if self.interleaved or bernoulli else c // levels for c in range(count)]
        self.last = Masked(value, tuple(own), (1, 1), (0, 0), 1)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        values = [images.to(self.last.weight.dtype) * (2 / (self.levels - 1)) - 1]
        for step, operands in zip(self.steps, self.operands, strict=True):
            arguments = [values[i] for i in operands]
            values.append(step(*arguments, labels) if isinstance(step, Embed) else step(*arguments))
        flat = self.last(values[-1])
        if isinstance(self.head, pf.heads.Bernoulli):
            return flat
        if self.interleaved:
            return flat.view(flat.shape[0], self.levels, *self.shape)
        return flat.view(flat.shape[0], self.channels, self.levels, *self.shape[1:]).transpose(1, 2)

    def __repr__(self) -> str:
        return self.recipe

    # building

    def _of(self, *kinds: str) -> list[int]:
        return [i for i, v in enumerate(self.values) if v.kind in kinds]

    def _pick(self, i: int, *kinds: str) -> int:
        """The i-th value of these kinds, counted from the last."""
        found = self._of(*kinds)
        return found[-1 - i % len(found)]

    def _add(self, step: nn.Module, operands: Any, value: Value) -> None:
        self.steps.append(step)
        self.operands.append(tuple(operands))
        self.values.append(value)

    def _conv(self, i: int, j: int, k: int) -> None:
        at = self._pick(i, "image", "causal") if self._of("causal") else 0
        outputs = max(1 + j % 6, self.channels)
        own = [c % self.channels if k % 2 else c * self.channels // outputs for c in range(outputs)]
        kernel = KERNELS[k % len(KERNELS)]
        anchor = min(kernel[0] - 1 + j % 2, 2), min(kernel[1] // 2 + k % 2, 2)
        shifts = anchor[0] == kernel[0] or anchor[1] == kernel[1]
        dilation = 1 if shifts else 1 + (i + k) % 2  # no crop beyond the grid
        step = Masked(self.values[at], tuple(own), kernel, anchor, dilation)
        self._add(step, (at,), Value("causal", tuple(own)))

    def _rows(self, i: int, j: int, k: int) -> None:
        at = self._pick(i, "image", "causal", "rows")
        outputs = 1 + j % 4
        kernel = [(1, 3), (2, 3), (2, 1), (1, 1)][k % 4]
        step = Rows(len(self.values[at]), outputs, kernel, 1 + j % 2)
        self._add(step, (at,), Value("rows", (0,) * outputs))

    def _down(self, i: int, j: int, k: int) -> None:
        at = self._pick(i, "rows", "image", "causal")
        by = min(1 + j % 2, self.height)
        self._add(Pad(0, 0, by, -by), (at,), Value("causal", (0,) * len(self.values[at])))

    def _blocks(self, i: int, j: int, k: int) -> None:
        at = self._pick(i, "image", "causal", "rows")
        outputs = 1 + j % 3
        step = Blocks(len(self.values[at]), outputs, self.height, 2 + k % 2)
        self._add(step, (at,), Value("causal", (0,) * outputs))

    def _right(self, i: int, j: int, k: int) -> None:
        at = self._pick(i, "image", "causal")
        by = min(1 + j % 2, self.width)
        self._add(Pad(by, -by), (at,), Value("causal", (0,) * len(self.values[at])))

    def _unary(self, i: int, j: int, k: int) -> None:
        at = self._pick(i, "image", "causal", "rows")
        self._add(Apply(UNARY[j % len(UNARY)]), (at,), self.values[at])

    def _binary(self, i: int, j: int, k: int) -> None:
        a, b = self._pick(i, "causal"), self._pick(j, "causal")
        n = min(len(self.values[a]), len(self.values[b]))
        both = zip(self.values[a].colours[:n], self.values[b].colours[:n], strict=True)
        self._add(Apply(BINARY[k % len(BINARY)], n), (a, b), Value("causal", tuple(max(c) for c in both)))

    def _gate(self, i: int, j: int, k: int) -> None:
        at = self._pick(i, "causal")
        c = self.values[at].colours
        n = len(c) // 2
        if n:
            both = zip(c[:n], c[n : 2 * n], strict=True)
            self._add(Apply("gate", n), (at,), Value("causal", tuple(max(pair) for pair in both)))

    def _channels(self, i: int, j: int, k: int) -> None:
        at = self._pick(i, "causal")
        c = self.values[at].colours
        if len(c) < 2:
            return
        if j == 7:
            self._add(Apply("flip"), (at,), Value("causal", c[::-1]))
        elif j % 3 == 0:
            half = -(-len(c) // 2)
            self._add(Apply("chunk"), (at,), Value("causal", c[half:] + c[:half]))
        elif j % 3 == 1:
            self._add(Apply("every", k % 2), (at,), Value("causal", c[k % 2 :: 2]))
        elif len(c) % 2 == 0:
            shuffled = np.array(c).reshape(2, -1).T.reshape(-1).tolist()
            self._add(Apply("shuffle"), (at,), Value("causal", tuple(shuffled)))

    def _cat(self, i: int, j: int, k: int) -> None:
        chosen = [self._pick(n, "causal") for n in (i, j, k)]
        colours = sum((self.values[at].colours for at in chosen), ())
        if len(colours) <= 12:
            self._add(Apply("cat"), chosen, Value("causal", colours))

    def _constants(self, i: int, j: int, k: int) -> None:
        at = self._pick(i, "image", "causal", "rows")
        self._add(Constants(len(self.values[at]), self.height, self.width), (at,), self.values[at])

    def _linear(self, i: int, j: int, k: int) -> None:
        at = self._pick(i, "causal")
        self._add(Pixelwise(self.values[at]), (at,), self.values[at])

    def _labels(self, i: int, j: int, k: int) -> None:
        at = self._pick(i, "causal", "rows")
        self._add(Embed(3, len(self.values[at])), (at,), self.values[at])


@st.composite
def networks(draw: Any) -> Case:
    """Random small causal networks, captured when first used."""
    small = st.integers(0, 7)
    steps = draw(st.lists(st.tuples(st.sampled_from(STEPS), small, small, small), max_size=10), label="steps")
    shape = draw(st.tuples(st.sampled_from([1, 1, 3]), st.integers(1, 4), st.integers(1, 5)), label="shape")
    levels = draw(st.sampled_from([2, 3, 5]), label="levels")
    network = RandomNetwork(shape, levels, levels == 2 and len(steps) % 3 == 0, steps)
    return Case(loud(network, network.last, shape), shape)


# --- some of them -----------------------------------------------------------------------------------------

# Without rectifiers, so that nothing hides what depends on what.
_STEPS = {
    "plain": [("conv", 0, 3, 5), ("unary", 0, 1, 0)],
    "dilated": [("conv", 0, 3, 6), ("conv", 0, 3, 7), ("conv", 1, 2, 5)],
    "vertical": [("rows", 0, 2, 0), ("rows", 0, 1, 1), ("down", 0, 0, 0), ("cat", 0, 1, 2)],
    "shifts": [("right", 5, 1, 0), ("down", 5, 0, 0), ("cat", 0, 1, 0), ("conv", 0, 3, 5), ("gate", 0, 0, 0)],
    "interleaved": [("conv", 0, 5, 1), ("linear", 0, 0, 0), ("channels", 0, 2, 0), ("binary", 0, 1, 2)],
}


@dataclass(frozen=True)
class Fixed:
    name: str
    colours: int

    def __str__(self) -> str:
        return f"{self.name}-{self.colours}"


FIXED = [Fixed(name, colours) for name in _STEPS for colours in (1, 3)]


@functools.cache
def fixed(which: Fixed) -> Case:
    shape = (which.colours, 4, 5)
    module = RandomNetwork(shape, 5, False, _STEPS[which.name])
    return Case(loud(module, module.last, shape), shape)
