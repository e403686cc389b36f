"""Recurrent layers along a sequence, and over a grid: loops of the plan, ops that read what they wrote earlier.

What the input contributes is a product of all positions, outside of the loop. Inside are an op, or two, whose product
takes the hidden states before and whose expression is the cell. States before the first position are constants; those
that are not zero enter with the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import plan as P
from .. import scan
from ..capture import where
from ..lower import Lowering, lowers
from ..values import View
from .products import _linear

aten = torch.ops.aten

Cell = Callable[[Lowering, View, Sequence[Tensor], Sequence[Tensor], tuple[int, int]], View]


class _Code:
    """An expression that grows; every method returns the index of its line."""

    def __init__(self) -> None:
        self.lines: list[P.Instruction] = []

    def __call__(self, fn: str, *args: int) -> int:
        self.lines.append(P.Instruction(fn, args))
        return len(self.lines) - 1

    def load(self, refs: np.ndarray, offset: tuple[int, int] = (0, 0)) -> int:
        self.lines.append(P.Instruction("load", refs=refs, offset=offset))
        return len(self.lines) - 1

    def product(self, first: int, count: int) -> int:
        self.lines.append(P.Instruction("product", refs=np.arange(first, first + count)))
        return len(self.lines) - 1

    def gate(self, gates: np.ndarray, k: int, product: int, size: int) -> int:
        """What the input and the last state give to the k-th gate, which is the `product`-th of the op's product."""
        return self("add", self.load(gates[k * size : (k + 1) * size]), self.product(product * size, size))


def _loop(
    ctx: Lowering, out: int, hidden: int, weight: np.ndarray, bias: Any, code: _Code, *back: tuple[int, int]
) -> None:
    """Write map `out`: `code` of the product of `weight` (products, hidden) with the hidden state one position back.

    Of a stack of weights, each is of the hidden state at an offset of its own.
    """
    stack = weight.reshape(len(back), *weight.shape[-2:]).transpose(0, 2, 1)
    order = sorted(range(len(back)), key=lambda k: back[k])
    matrices, offsets = np.ascontiguousarray(stack[order]), tuple(back[k] for k in order)
    refs = ctx.build.refs(hidden)
    ctx.build.add(P.ConvOp(out, refs, offsets, matrices, bias, code=tuple(code.lines), where=where(ctx.node)))


def _at_start(v: View, values: Tensor, back: tuple[int, int]) -> Tensor:
    """Constants (channels,) at the position that has none before it, zero at the others."""
    at = v.axes.index("x")
    shape = [1] * len(v.axes)
    shape[at], shape[-1] = v.width, len(values)
    constant = torch.zeros(shape)
    constant.select(at, 0 if back[1] < 0 else v.width - 1)[...] = values
    return constant


def _gates(
    ctx: Lowering, v: View, weight: Tensor, bias: Tensor | None, start: Tensor, back: tuple[int, int]
) -> View:
    """What the input contributes, and at the start the state before it."""
    v = _linear(ctx, v, weight, bias)
    return ctx.pointwise([v, _at_start(v, start, back)], ("add", 0, 1)) if start.any() else v


def _total(biases: Sequence[Tensor]) -> Tensor | None:
    return biases[0] + biases[1] if biases else None


def _lstm(
    ctx: Lowering, v: View, weights: Sequence[Tensor], states: Sequence[Tensor], back: tuple[int, int]
) -> View:
    """Hochreiter and Schmidhuber 1997, with forget gates; gates in the order input, forget, cell, output."""
    w_input, w_hidden, *biases = weights
    hidden, cell = states
    size = w_hidden.shape[1]
    v = _gates(ctx, v, w_input, _total(biases), w_hidden @ hidden, back)
    c, h = (ctx.new_map(size, v.height, v.width, suffix=f".{name}") for name in ("cell", "hidden"))
    code = _Code()
    i, f = (code("sigmoid", code.gate(v.refs, k, k, size)) for k in (0, 1))
    g = code("tanh", code.gate(v.refs, 2, 2, size))
    last = code.load(ctx.build.refs(c), back)
    if cell.any():
        code.lines += ctx.operand(_at_start(v, cell, back), v, (size,))
        last = code("add", last, len(code.lines) - 1)
    code("add", code("mul", f, last), code("mul", i, g))
    matrix = w_hidden.numpy()
    _loop(ctx, c, h, matrix[: 3 * size], None, code, back)
    code = _Code()
    o = code("sigmoid", code.gate(v.refs, 3, 0, size))
    code("mul", o, code("tanh", code.load(ctx.build.refs(c))))
    _loop(ctx, h, h, matrix[3 * size :], None, code, back)
    return ctx.whole(h, v.axes, [size])


def _gru(
    ctx: Lowering, v: View, weights: Sequence[Tensor], states: Sequence[Tensor], back: tuple[int, int]
) -> View:
    """Cho et al. 2014, with the reset gate after the product; gates in the order reset, update, new."""
    w_input, w_hidden, *biases = weights
    (hidden,) = states
    size = w_hidden.shape[1]
    if hidden.any():
        raise ctx.fail("a GRU whose first state is not zero; supported is zero")
    b_input, b_hidden = biases or [torch.zeros(3 * size)] * 2
    v = _gates(ctx, v, w_input, b_input, torch.zeros(3 * size), back)
    h = ctx.new_map(size, v.height, v.width, suffix=".hidden")
    code = _Code()
    r, z = (code("sigmoid", code.gate(v.refs, k, k, size)) for k in (0, 1))
    state = code("mul", r, code.product(2 * size, size))
    n = code("tanh", code("add", code.load(v.refs[2 * size :]), state))
    code("add", n, code("mul", z, code("sub", code.load(ctx.build.refs(h), back), n)))
    _loop(ctx, h, h, w_hidden.numpy(), b_hidden.numpy(), code, back)
    return ctx.whole(h, v.axes, [size])


def _elman(fn: str) -> Cell:
    def cell(
        ctx: Lowering, v: View, weights: Sequence[Tensor], states: Sequence[Tensor], back: tuple[int, int]
    ) -> View:
        """Elman 1990."""
        w_input, w_hidden, *biases = weights
        (hidden,) = states
        size = w_hidden.shape[1]
        v = _gates(ctx, v, w_input, _total(biases), w_hidden @ hidden, back)
        h = ctx.new_map(size, v.height, v.width, suffix=".hidden")
        code = _Code()
        code(fn, code.gate(v.refs, 0, 0, size))
        _loop(ctx, h, h, w_hidden.numpy(), None, code, back)
        return ctx.whole(h, v.axes, [size])

    return cell


def _layers(
    ctx: Lowering, a: Any, states: Sequence[Any], weights: Sequence[Any], cell: Cell, *, has_biases: bool,
    layers: int, bidirectional: bool, batch_first: bool,
) -> View:  # fmt: skip
    """A stack of layers, each in one direction or in both."""
    v, axes = ctx.view(a), "nxc" if batch_first else "xnc"
    if v.axes != axes:
        raise ctx.fail(f"a recurrent layer along {v.axes}; supported is {axes}: batch, positions, channels")
    directions = 2 if bidirectional else 1
    per_cell = 4 if has_biases else 2
    if not all(isinstance(t, Tensor) for t in (*states, *weights)):
        raise ctx.fail("weights or first states that depend on the image or on a condition")
    if len(weights) != per_cell * layers * directions:
        raise ctx.fail("a recurrent layer with projections (proj_size)")
    if not all((s == s[:, :1]).all() for s in states):
        raise ctx.fail("first states that differ between the images of a batch")
    parts = [w.detach().float() for w in weights]
    for layer in range(layers):
        found = []
        for d in range(directions):
            at = layer * directions + d
            own = parts[per_cell * at : per_cell * (at + 1)]
            found.append(cell(ctx, v, own, [s[at, 0].detach().float() for s in states], (0, 2 * d - 1)))
        v = replace(found[0], refs=np.concatenate([f.refs for f in found]))
    return v


@lowers(aten.lstm.input)
def _lstm_layers(
    ctx: Lowering, a: Any, states: Sequence[Any], weights: Sequence[Any], has_biases: bool, layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> list[View | None]:  # fmt: skip
    v = _layers(ctx, a, states, weights, _lstm, has_biases=has_biases, layers=layers,
                bidirectional=bidirectional, batch_first=batch_first)  # fmt: skip
    return [v, None, None]


def _one_state(cell: Cell) -> Callable[..., list[View | None]]:
    def rule(
        ctx: Lowering, a: Any, state: Any, weights: Sequence[Any], has_biases: bool, layers: int,
        dropout: float, train: bool, bidirectional: bool, batch_first: bool,
    ) -> list[View | None]:  # fmt: skip
        v = _layers(ctx, a, [state], weights, cell, has_biases=has_biases, layers=layers,
                    bidirectional=bidirectional, batch_first=batch_first)  # fmt: skip
        return [v, None]

    return rule


for _target, _cell in (
    (aten.gru.input, _gru),
    (aten.rnn_tanh.input, _elman("tanh")),
    (aten.rnn_relu.input, _elman("relu")),
):
    lowers(_target)(_one_state(_cell))


# --- over a grid ------------------------------------------------------------------------------------------------


@lowers(torch.ops.pixelfast.lstm_scan.default)
def _lstm_over_grid(
    ctx: Lowering, a: Any, weight: Any, edge: Any, hidden: Sequence[int], cells: Sequence[int]
) -> list[View | None]:
    """`pixelfast.lstm_scan`; gates in the order output, forget (one for each cell that is read), input, cell."""
    v = ctx.view(a)
    if v.axes != "ncyx" or not isinstance(weight, Tensor) or not isinstance(edge, Tensor | None):
        raise ctx.fail(
            f"gates of axes {v.axes}, or weights that depend on a condition; supported are (N, C, H, W)"
        )
    taps, back = scan.pairs(hidden), scan.pairs(cells)
    size = weight.shape[2]
    of_hidden, of_cell = torch.zeros(2, size) if edge is None else edge.detach().float()
    w = weight.detach().float()
    if of_hidden.any():
        outside = torch.stack([_outside(v, k) for k in taps])
        v = ctx.pointwise([v, torch.einsum("kyx,kgd,d->gyx", outside, w, of_hidden)], ("add", 0, 1))
    elif not ctx.is_whole(v, (v.height, v.width)):
        v = ctx.settle(v)
    c, h = (ctx.new_map(size, v.height, v.width, suffix=f".{name}") for name in ("cell", "hidden"))
    code = _Code()
    total = None
    for m, offset in enumerate(back):
        last = code.load(ctx.build.refs(c), offset)
        if of_cell.any():
            code.lines += ctx.operand(_outside(v, offset) * of_cell[:, None, None], v, (size,))
            last = code("add", last, len(code.lines) - 1)
        kept = code("mul", code("sigmoid", code.gate(v.refs, 1 + m, m, size)), last)
        total = kept if total is None else code("add", total, kept)
    i, g = (
        code(fn, code.gate(v.refs, 1 + len(back) + k, len(back) + k, size))
        for k, fn in enumerate(("sigmoid", "tanh"))
    )
    assert total is not None
    code("add", total, code("mul", i, g))
    matrices = w.numpy()
    _loop(ctx, c, h, matrices[:, size:], None, code, *taps)
    code = _Code()
    o = code("sigmoid", code.gate(v.refs, 0, 0, size))
    code("mul", o, code("tanh", code.load(ctx.build.refs(c))))
    _loop(ctx, h, h, matrices[:, :size], None, code, *taps)
    return [ctx.whole(h, v.axes, [size]), None, None]


def _outside(v: View, offset: tuple[int, int]) -> Tensor:
    """(H, W): 1 where the position at an offset lies outside of the grid, else 0."""
    y, x = (torch.arange(size) + d for size, d in zip((v.height, v.width), offset, strict=True))
    inside = ((y >= 0) & (y < v.height))[:, None] & ((x >= 0) & (x < v.width))
    return (~inside).float()
