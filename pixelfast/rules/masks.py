"""Rules for comparisons, truth values, selection and conversion.

Truth values are the floats 0 and 1, made by exact arithmetic. A selection is a clamp between bounds that are equal, or
infinite: it is exact, and what is not selected may be infinite.

What a constant masks away is structure: it depends on nothing, where a few rectangles hold what is left of a channel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import plan as P
from ..lower import Lowering, lowers
from ..values import Given, Table, View, visible
from .rounding import HUGE, UP, truncated

aten = torch.ops.aten
kRectangles = 4  # of positions that a mask may keep, before it is only multiplied
kPatterns = 64  # in which channels may be kept differently


# --- comparisons ----------------------------------------------------------------------------------------------


def _above(ctx: Lowering, a: Any, b: Any) -> Any:
    return ctx.pointwise([a, b], ("sub", 0, 1), *UP)


def _not(ctx: Lowering, a: Any) -> Any:
    return ctx.pointwise([a], ("sub", 1.0, 0))


def _differs(ctx: Lowering, a: Any, b: Any) -> Any:
    return ctx.pointwise([_above(ctx, a, b), _above(ctx, b, a)], ("max", 0, 1))


_COMPARISONS: dict[str, Callable[[Lowering, Any, Any], Any]] = {
    "gt": _above,
    "lt": lambda ctx, a, b: _above(ctx, b, a),
    "ge": lambda ctx, a, b: _not(ctx, _above(ctx, b, a)),
    "le": lambda ctx, a, b: _not(ctx, _above(ctx, a, b)),
    "ne": _differs,
    "eq": lambda ctx, a, b: _not(ctx, _differs(ctx, a, b)),
}
for _name, _rule in _COMPARISONS.items():
    lowers(getattr(aten, _name).Scalar, getattr(aten, _name).Tensor)(_rule)


# --- truth values ---------------------------------------------------------------------------------------------


def _dtype(ctx: Lowering, argument: int) -> torch.dtype:
    node: Any = ctx.node.args[argument]
    return node.meta["val"].dtype if hasattr(node, "meta") else torch.float32


def truth(ctx: Lowering, value: Any, argument: int) -> Any:
    """Whether the value, an argument of the op at hand, is not zero."""
    if _dtype(ctx, argument) == torch.bool:
        return value
    return value.bool() if isinstance(value, Tensor) else _differs(ctx, value, 0.0)


def _logical(*steps: tuple) -> Callable:
    def rule(ctx: Lowering, *values: Any) -> Any:
        truths = [truth(ctx, value, i) for i, value in enumerate(values)]
        return ctx.pointwise(truths, *steps)

    return rule


def _bitwise(*steps: tuple) -> Callable:
    def rule(ctx: Lowering, *values: Any) -> Any:
        for i in range(len(values)):
            if _dtype(ctx, i) != torch.bool:
                raise ctx.fail("it takes the bits of integers of a feature map; supported are truth values")
        return ctx.pointwise(values, *steps)

    return rule


_LOGIC: dict[str, tuple[tuple, ...]] = {
    "and": (("min", 0, 1),),
    "or": (("max", 0, 1),),
    "xor": (("sub", 0, 1), ("abs", -1)),
}
for _name, _steps in _LOGIC.items():
    lowers(getattr(aten, f"logical_{_name}").default)(_logical(*_steps))
    lowers(getattr(aten, f"bitwise_{_name}").Tensor, getattr(aten, f"__{_name}__").Tensor)(_bitwise(*_steps))
lowers(aten.logical_not.default)(_logical(("sub", 1.0, 0)))
lowers(aten.bitwise_not.default)(_bitwise(("sub", 1.0, 0)))


# --- masks ----------------------------------------------------------------------------------------------------


@lowers(aten.mul.Tensor, aten.mul_.Tensor, aten.mul.Scalar)
def _mul(ctx: Lowering, a: Any, b: Any) -> Any:
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Tensor) and isinstance(other, Table | View) and not one.all():
            return ctx.pointwise([without(ctx, ctx.view(other), one != 0)[0], one], ("mul", 0, 1))
    return ctx.pointwise([a, b], ("mul", 0, 1))


def without(ctx: Lowering, v: View, kept: Tensor) -> tuple[View, bool]:
    """The view, zero where `kept` is false, as far as windows of channels say it; and whether that is everywhere."""
    if kept.ndim > len(v.axes):
        return v, False
    array = kept.detach().numpy()
    array, axes = ctx.of_one_image(array.reshape((1,) * (len(v.axes) - array.ndim) + array.shape), v.axes)
    channels = [i for i, a in enumerate(axes) if a == "c"]
    array = array.transpose([*channels, *(axes.index(a) for a in "yx" if a in axes)])
    own, grid = array.shape[: len(channels)], (1, 1, *array.shape[len(channels) :])[-2:]
    if grid[0] not in (1, v.height) or grid[1] not in (1, v.width):
        return v, False
    dims = np.broadcast_shapes(v.refs.shape, own)
    refs = np.broadcast_to(v.refs, dims).reshape(-1)
    seen = np.broadcast_to(array.reshape(*own, *grid), (*dims, *grid)).reshape(-1, *grid)
    refs = np.where(seen.any(axis=(1, 2)), refs, P.ZERO)
    alive = np.flatnonzero(refs != P.ZERO)
    patterns, pattern_of = np.unique(seen[alive], axis=0, return_inverse=True)
    if len(patterns) > kPatterns:
        return replace(v, refs=refs.reshape(dims)), False
    boxes = [list(_rectangles(np.broadcast_to(p, (v.height, v.width)))) for p in patterns]
    handled = max(map(len, boxes), default=0) <= kRectangles
    if len(patterns) < 2:
        v = replace(v, refs=refs.reshape(dims))
        return (_windowed(ctx, v, boxes[0]) if handled and boxes else v), handled
    flat = replace(v, axes="nc" + "".join(a for a in v.axes if a not in "ncb"))
    for i, those in enumerate(boxes):
        at = alive[pattern_of.reshape(-1) == i]
        part = replace(flat, refs=refs[at])
        part = ctx.settle(_windowed(ctx, part, those) if len(those) <= kRectangles else part)
        refs[at] = part.refs
    return replace(part, axes=v.axes, refs=refs.reshape(dims)), handled


def _windowed(ctx: Lowering, v: View, boxes: Sequence[tuple[int, int, int, int]]) -> View:
    """Zero outside the boxes: the sum of what is in each."""
    parts = [_cut(v, box) for box in boxes]
    return functools.reduce(lambda a, b: ctx.pointwise([a, b], ("add", 0, 1)), parts)


def _rectangles(seen: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (y0, y1, x0, x1) that hold what is true: for each run of equal rows, those of the row."""
    rows = np.flatnonzero((seen[1:] != seen[:-1]).any(axis=1)) + 1
    for top, bottom in zip([0, *rows.tolist()], [*rows.tolist(), len(seen)], strict=True):
        edges = np.flatnonzero(np.diff(np.pad(seen[top], 1).astype(np.int8)))
        for left, right in edges.reshape(-1, 2).tolist():
            yield top, bottom, left, right


def _cut(v: View, box: tuple[int, int, int, int]) -> View:
    """Zero outside the box, which is in the view's positions."""
    (y0, y1, x0, x1), (sy, sx), seen = box, v.shift, visible(v)
    window = (max(y0 + sy, seen[0]), min(y1 + sy, seen[1]), max(x0 + sx, seen[2]), min(x1 + sx, seen[3]))
    return v if (y0, x0, y1, x1) == (0, 0, v.height, v.width) else replace(v, window=window)


def filled(ctx: Lowering, v: View, mask: Tensor, value: Any) -> View:
    """`value`, a constant, where the mask is true."""
    value = value.to(torch.float32) if isinstance(value, Tensor) else torch.tensor(float(value))
    v, done = without(ctx, v, ~mask)
    if done and not value.any():
        return v
    low, high = (torch.where(mask, value, torch.tensor(bound)) for bound in (-torch.inf, torch.inf))
    return ctx.pointwise([v, low, high], ("max", 0, 1), ("min", -1, 2))


@lowers(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def where_(ctx: Lowering, condition: Any, a: Any, b: Any) -> Any:
    of_image = [isinstance(value, Table | View) for value in (a, b)]
    if isinstance(condition, Tensor) and not any(isinstance(value, Given) for value in (a, b)):
        condition = condition.bool()
        if all(of_image):
            parts = [filled(ctx, ctx.view(a), ~condition, 0), filled(ctx, ctx.view(b), condition, 0)]
            return ctx.pointwise(parts, ("add", 0, 1))
        return (
            filled(ctx, ctx.view(a), ~condition, b) if of_image[0] else filled(ctx, ctx.view(b), condition, a)
        )
    bounded = [("mul", -1, HUGE), ("neg", -1)]
    first = [("mul", 0, HUGE), *bounded, ("min", 1, -2), ("max", -1, -2)]
    second = [("sub", 1.0, 0), ("mul", -1, HUGE), *bounded, ("min", 2, -2), ("max", -1, -2)]
    return ctx.pointwise([condition, a, b], *first, *second, ("add", 9, -1))  # 9: the last of the first


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(ctx: Lowering, a: Any, mask: Any, value: Any) -> Any:
    return where_(ctx, mask, value, a)


@lowers(aten.threshold.default)
def _threshold(ctx: Lowering, a: Any, threshold: float, value: float) -> Any:
    return where_(ctx, _above(ctx, a, float(threshold)), a, float(value))


# --- types ----------------------------------------------------------------------------------------------------


_ARITHMETIC = {aten.add, aten.add_, aten.sub, aten.sub_, aten.rsub, aten.mul, aten.mul_, aten.neg, aten.pow}
_WRITES = {
    aten.copy, aten.copy_, aten.fill, aten.masked_fill, aten.masked_fill_, aten.index_put, aten.index_put_,
    aten.slice_scatter, aten.select_scatter,
}  # fmt: skip


def typed(ctx: Lowering, a: Any) -> Any:
    """Feature maps are floats: what an op yields is made such as PyTorch's integers and truth values are."""
    like, op = ctx.node.meta["val"], getattr(ctx.node.target, "overloadpacket", None)
    if not isinstance(a, View) or not isinstance(like, torch.Tensor) or like.is_floating_point():
        return a
    if op in _ARITHMETIC and like.dtype == torch.bool:
        return ctx.pointwise([a], ("min", 0, 1.0))
    if op in _ARITHMETIC and like.dtype not in (torch.int32, torch.int64):
        raise ctx.fail(f"arithmetic of {like.dtype}, which wraps; supported are int32, int64 and float32")
    operands = (node.meta.get("val") for node in ctx.node.all_input_nodes)
    floats = any(isinstance(value, torch.Tensor) and value.is_floating_point() for value in operands)
    return converted(ctx, a, like.dtype) if op in _WRITES and floats else a


def converted(ctx: Lowering, a: Any, dtype: torch.dtype | None) -> Any:
    """Integers and truth values are held as floats."""
    if not isinstance(a, View) or dtype in (None, torch.float32):
        return a
    if dtype == torch.bool:
        return truth(ctx, a, 0)
    if dtype in (torch.int32, torch.int64):
        return a if _dtype(ctx, 0) == torch.bool else truncated(ctx, a)
    raise ctx.fail(f"feature maps are float32, the model converts one to {dtype}")


@lowers(aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout)
def _to(ctx: Lowering, a: Any, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Any:
    return converted(ctx, a, dtype)


@lowers(aten.type_as.default)
def _type_as(ctx: Lowering, a: Any, _: Any) -> Any:
    dtype = ctx.node.meta["val"].dtype
    return replace(a, values=a.values.to(dtype)) if isinstance(a, Table) else converted(ctx, a, dtype)
