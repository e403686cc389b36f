"""Rules for writing into parts of a tensor, for channels picked by constant indices, and for repetition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..lower import Lowering, lowers
from ..values import Given, Table, View
from .layout import _expand, _slice, _unsqueeze, aligned, as_view, dealt, side_by_side, taken
from .masks import filled
from .products import _index
from .resample import enlarged, interleaved
from .reshape import of_rank

aten = torch.ops.aten


# --- writing --------------------------------------------------------------------------------------------------


@lowers(aten.copy.default)
def _copy(ctx: Lowering, a: Any, source: Any, *_: Any) -> Any:
    """The source, in the shape of what it overwrites."""
    if isinstance(source, Table | View):
        return _expand(ctx, source, ())
    if isinstance(source, Tensor):
        return source.expand(ctx.shape_of(ctx.node))
    return source


@lowers(aten.fill.Scalar, aten.fill.Tensor, aten.zero.default)
def _fill(ctx: Lowering, a: Any, value: Any = 0) -> Any:
    if not isinstance(value, int | float | Tensor):
        raise ctx.fail("it fills a tensor with a number that depends on the image or on a condition")
    return torch.full(ctx.shape_of(ctx.node), float(value))


@lowers(aten.slice_scatter.default)
def _slice_scatter(
    ctx: Lowering,
    a: Any,
    source: Any,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Any:
    """`a`, with a slice of it overwritten."""
    shape = ctx.shape_of(ctx.node)
    dim %= len(shape)
    where_to = slice(start, end, step).indices(shape[dim])
    if where_to == (0, shape[dim], 1):
        return source
    of_image = [ctx.view(value) for value in (a, source) if isinstance(value, Table | View)]
    like = max(of_image, key=lambda v: "y" in v.axes)
    inner = [*shape[:dim], len(range(*where_to)), *shape[dim + 1 :]]
    base, written = as_view(ctx, a, like, shape), as_view(ctx, source, like, inner)
    axis = like.axes[dim]
    if axis == "c":
        base, written = aligned(ctx, [base, written])
        refs = base.refs.copy()
        np.moveaxis(refs, base.ref_axis(dim), 0)[slice(*where_to)] = np.moveaxis(
            written.refs, base.ref_axis(dim), 0
        )
        return replace(base, refs=refs)
    if axis not in "yx":
        raise ctx.fail(f"overwrites a slice of axis {axis}; supported are channels and positions")
    if step != 1:
        return _every_overwritten(ctx, base, written, axis, where_to)
    first, last, _ = where_to
    parts = [_slice(ctx, base, dim, 0, first), written, _slice(ctx, base, dim, last, shape[dim])]
    return side_by_side(ctx, parts, axis)


def _every_overwritten(
    ctx: Lowering, base: View, written: View, axis: str, where_to: tuple[int, int, int]
) -> View:
    """Every so-many-th row or column overwritten: parts of the grid dealt, exchanged, and dealt back."""
    (start, _, step), size = where_to, base.height if axis == "y" else base.width
    if size % step or start >= step or len(range(*where_to)) != size // step:
        raise ctx.fail(
            f"overwrites {len(range(*where_to))} of {size} positions in steps of {step}; supported are all of a phase, "
            "where the step divides the size"
        )
    shape = (step, 1) if axis == "y" else (1, step)
    parts = dealt(ctx, base, *shape)
    parts[start] = written
    return interleaved(ctx, parts, *shape)


@lowers(aten.select_scatter.default)
def _select_scatter(ctx: Lowering, a: Any, source: Any, dim: int, index: int) -> Any:
    dim %= len(ctx.shape_of(ctx.node))
    index %= ctx.shape_of(ctx.node)[dim]
    if isinstance(source, Tensor):
        source = source.unsqueeze(dim)
    elif isinstance(source, Given):
        raise ctx.fail("it overwrites one entry of an axis with a condition; supported are slices")
    else:
        source = _unsqueeze(ctx, ctx.view(source), dim)
    return _slice_scatter(ctx, a, source, dim, index, index + 1)


@lowers(aten.index_put.default)
def _index_put(ctx: Lowering, a: Any, indices: Sequence[Any], value: Any, accumulate: bool = False) -> Any:
    """`value` where a constant mask is true."""
    if any(index is None for index in indices) and not accumulate:
        return _rows_overwritten(ctx, a, indices, value)
    (mask, *others) = indices
    plain = isinstance(mask, Tensor) and mask.dtype == torch.bool and not others and not accumulate
    if not plain or not isinstance(value, Tensor) or value.numel() != 1:
        raise ctx.fail(
            "it overwrites what indices name; supported is one number where a constant mask is true"
        )
    v = ctx.view(a)
    return filled(ctx, v, mask.reshape(*mask.shape, *[1] * (len(v.axes) - mask.ndim)), value.reshape(()))


def _by_rows(ctx: Lowering, v: View, indices: Sequence[Any]) -> list[tuple[int, np.ndarray]]:
    """Constant indices of the last two axes: for each row of the result, its row and its columns."""
    used = [i for i, index in enumerate(indices) if index is not None]
    rank = len(v.axes)
    plain = used == [rank - 2, rank - 1] and all(isinstance(indices[i], Tensor) for i in used)
    if plain and v.axes[-2:] == "yx" and not any(indices[i].dtype == torch.bool for i in used):
        y, x = (i.numpy() for i in torch.broadcast_tensors(*(indices[i] for i in used)))
        if y.ndim == 2 and (y == y[:, :1]).all():
            return [(int(row) % v.height, columns % v.width) for row, columns in zip(y[:, 0], x, strict=True)]
    raise ctx.fail(
        f"indices of a tensor of axes {v.axes}; supported are a row of an axis, and rows and columns of a grid, each "
        "row of the result from one row"
    )


def _rows_overwritten(ctx: Lowering, a: Any, indices: Sequence[Any], value: Any) -> View:
    """In some rows, some columns side by side."""
    shape = ctx.shape_of(ctx.node)
    of_image = [ctx.view(v) for v in (a, value) if isinstance(v, Table | View)]
    like = max(of_image, key=lambda v: "y" in v.axes)
    base = as_view(ctx, a, like, shape)
    chosen = _by_rows(ctx, base, indices)
    source = as_view(ctx, value, like, [*shape[:-2], len(chosen), len(chosen[0][1])])
    rows = [_slice(ctx, base, -2, y, y + 1) for y in range(base.height)]
    for i, (y, columns) in enumerate(chosen):
        if (np.diff(columns) != 1).any():
            raise ctx.fail("it overwrites columns that do not stand side by side")
        first, end = int(columns[0]), int(columns[-1]) + 1
        parts = [
            _slice(ctx, rows[y], -1, 0, first),
            _slice(ctx, source, -2, i, i + 1),
            _slice(ctx, rows[y], -1, end, base.width),
        ]
        rows[y] = side_by_side(ctx, parts, "x")
    return side_by_side(ctx, rows, "y")


# --- picking --------------------------------------------------------------------------------------------------


def _taken(
    ctx: Lowering, v: View, dim: int, pick: Callable[[np.ndarray, int], np.ndarray], what: str
) -> View:
    """The channels of an axis that `pick` picks, from an array and its axis."""
    size = ctx.shape_of(ctx.node.all_input_nodes[0])[dim]
    return taken(ctx, v, dim, pick(np.arange(size), 0).tolist(), what)


@lowers(aten.index_select.default)
def _index_select(ctx: Lowering, a: Any, dim: int, index: Any) -> Any:
    if not isinstance(index, Tensor):
        raise ctx.fail("the indices depend on the image or on a condition")
    return _taken(
        ctx, ctx.view(a), dim, lambda refs, axis: refs.take(index.numpy(), axis), "it picks entries"
    )


@lowers(aten.index.Tensor)
def _picked(ctx: Lowering, a: Any, indices: Sequence[Any]) -> Any:
    """A table of constants at the image's levels, or channels by constant indices."""
    used = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if isinstance(a, Tensor):
        return _index(ctx, a, indices)
    if len(used) == 2:
        v = ctx.view(a)
        rows = [
            taken(ctx, _slice(ctx, v, -2, y, y + 1), -1, x.tolist(), "") for y, x in _by_rows(ctx, v, indices)
        ]
        return side_by_side(ctx, rows, "y")
    if (
        len(used) != 1
        or not isinstance(used[0][1], Tensor)
        or used[0][1].ndim != 1
        or used[0][1].dtype == torch.bool
    ):
        raise ctx.fail("an index of several axes, or by what is not a constant row of integers")
    dim, index = used[0]
    return _taken(
        ctx, ctx.view(a), dim, lambda refs, axis: refs.take(index.numpy(), axis), "it picks entries"
    )


@lowers(aten.roll.default)
def _roll(ctx: Lowering, a: Any, shifts: Sequence[int], dims: Sequence[int] = ()) -> Any:
    v = ctx.view(a)
    if not dims:
        raise ctx.fail("it rolls the flattened tensor; supported are axes of channels or positions")
    for shift, dim in zip(shifts, dims, strict=True):
        axis = v.axes[v.axis(dim)]
        if axis == "c":
            v = replace(v, refs=np.roll(v.refs, shift, v.ref_axis(dim)))
        elif axis in "yx":
            size = v.height if axis == "y" else v.width
            cut = -shift % size
            v = side_by_side(ctx, [_slice(ctx, v, dim, cut, size), _slice(ctx, v, dim, 0, cut)], axis)
        else:
            raise ctx.fail(f"it rolls the {axis} axis; supported are channels and positions")
    return v


# --- repetition -----------------------------------------------------------------------------------------------


@lowers(aten.repeat.default)
def _repeat(ctx: Lowering, a: Any, repeats: Sequence[int]) -> View:
    v = of_rank(ctx.view(a), len(repeats))
    for axis, times in zip(v.axes, repeats, strict=True):
        if axis not in "cb" and times != 1:
            raise ctx.fail(f"it repeats the {axis} axis; supported are channels")
    return replace(v, refs=np.tile(v.refs, [t for a, t in zip(v.axes, repeats, strict=True) if a in "cb"]))


@lowers(aten.repeat_interleave.self_int)
def _repeat_interleave(ctx: Lowering, a: Any, times: int, dim: int | None = None, **_: Any) -> View:
    v = ctx.view(a)
    if dim is None:
        raise ctx.fail("it repeats entries of the flattened tensor; name an axis")
    if v.axes[v.axis(dim)] in "yx":
        return enlarged(ctx, v, *((times, 1) if v.axes[v.axis(dim)] == "y" else (1, times)))
    return _taken(ctx, v, dim, lambda refs, axis: refs.repeat(times, axis), "it repeats entries")
