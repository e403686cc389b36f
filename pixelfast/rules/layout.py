"""Rules for ops that only move values: arithmetic on Views, which costs nothing at run time."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .. import plan as P
from ..capture import where
from ..lower import Lowering, lowers
from ..values import Table, View, visible
from .conditions import same_axes
from .reshape import _view, alike, of_rank, on_grid, reshape

aten = torch.ops.aten


@lowers(aten.permute.default)
def _permute(ctx: Lowering, a: Any, dims: Sequence[int]) -> View | Table:
    if isinstance(a, Table) and a.values.ndim == 4:
        return replace(a, moves=(*a.moves, ("permute", tuple(d % len(dims) for d in dims))))
    v = ctx.view(a)
    dims = [v.axis(d) for d in dims]
    refs = v.refs.transpose([v.ref_axis(d) for d in dims if v.axes[d] in "cb"])
    return replace(v, axes="".join(v.axes[d] for d in dims), refs=refs)


@lowers(aten.transpose.int)
def _transpose(ctx: Lowering, a: Any, i: int, j: int) -> View | Table:
    dims = list(range(len(ctx.shape_of(ctx.node))))
    dims[i], dims[j] = dims[j], dims[i]
    return _permute(ctx, a, dims)


@lowers(aten.unsqueeze.default)
def _unsqueeze(ctx: Lowering, a: Any, dim: int) -> View | Table:
    if isinstance(a, Table) and a.values.ndim == 4:
        return _view(ctx, a, ())
    v = ctx.view(a)
    dim %= len(v.axes) + 1
    refs = np.expand_dims(v.refs, sum(axis in "cb" for axis in v.axes[:dim]))
    return replace(v, axes=v.axes[:dim] + "c" + v.axes[dim:], refs=refs)


@lowers(aten.squeeze.dim, aten.squeeze.dims)
def _squeeze(ctx: Lowering, a: Any, dims: int | Sequence[int]) -> View | Table:
    if isinstance(a, Table) and a.values.ndim == 4:
        return _view(ctx, a, ())
    v = ctx.view(a)
    for dim in sorted({v.axis(d) for d in ([dims] if isinstance(dims, int) else dims)}, reverse=True):
        if v.axes[dim] in "yx" and v.shape[dim] == 1 and not set(v.axes) - set("ncyx"):
            v = _without(ctx, v, dim)
        elif v.axes[dim] == "c" and v.refs.shape[v.ref_axis(dim)] == 1:
            refs = v.refs.squeeze(v.ref_axis(dim))
            v = replace(v, axes=v.axes[:dim] + v.axes[dim + 1 :], refs=refs)
    return v


@lowers(aten.squeeze.default)
def _squeeze_all(ctx: Lowering, a: Any) -> View | Table:
    return _squeeze(
        ctx, a, [i for i, size in enumerate(ctx.shape_of(ctx.node.all_input_nodes[0])) if size == 1]
    )


@lowers(aten.stack.default)
def _stack(ctx: Lowering, values: Sequence[Any], dim: int = 0) -> View:
    rank = len(ctx.shape_of(ctx.node))
    views = [
        v.unsqueeze(dim % rank)
        if isinstance(v, torch.Tensor)
        else _unsqueeze(ctx, ctx.view(v) if isinstance(v, Table) else v, dim % rank)
        for v in same_axes(ctx, values)
    ]
    return _cat(ctx, views, dim % rank)


@lowers(aten.flip.default)
def _flip(ctx: Lowering, a: Any, dims: Sequence[int]) -> View:
    v = ctx.view(a)
    for dim in dims:
        v = taken(ctx, v, dim, range(ctx.shape_of(ctx.node)[dim])[::-1], "it flips")
    return v


def taken(ctx: Lowering, v: View, dim: int, index: Sequence[int], what: str) -> View:
    """The entries `index` of an axis of channels or of positions."""
    axis = v.axes[v.axis(dim)]
    if axis == "c":
        return replace(v, refs=v.refs.take(index, v.ref_axis(dim)))
    if axis not in "yx":
        raise ctx.fail(
            f"{what} along {axis} of a tensor of axes {v.axes}; supported are channels and positions"
        )
    v = ctx.clean(v, (0, v.height, 0, v.width))
    count, refs, (sy, sx) = len(index), v.refs.reshape(-1), v.shift
    out = ctx.new_map(refs.size, *((count, v.width) if axis == "y" else (v.height, count)), suffix=".taken")
    for i, at in enumerate(index):
        offset, phase = (
            ((sy + at, sx), (i, 0, count, 1)) if axis == "y" else ((sy, sx + at), (0, i, 1, count))
        )
        ctx.build.add(
            P.MapOp(out, (P.Instruction("load", refs=refs, offset=offset),), where(ctx.node), phase)
        )
    return ctx.whole(out, v.axes, v.refs.shape)


@lowers(aten.glu.default)
def _glu(ctx: Lowering, a: Any, dim: int = -1) -> View:
    v = ctx.view(a)
    if v.axes[v.axis(dim)] != "c":
        raise ctx.fail(f"gates along {v.axes[v.axis(dim)]}; supported are channels")
    half = v.refs.shape[v.ref_axis(dim)] // 2
    value, gate = _slice(ctx, v, dim, 0, half), _slice(ctx, v, dim, half, 2 * half)
    return ctx.pointwise([value, gate], ("sigmoid", 1), ("mul", 0, -1))


@lowers(aten.expand.default)
def _expand(ctx: Lowering, a: Any, sizes: Sequence[int], **_: Any) -> View:
    v = ctx.view(a)
    target = list(ctx.shape_of(ctx.node))
    v = of_rank(v, len(target))
    dims = [s for s, axis in zip(target, v.axes, strict=True) if axis in "cb"]
    return replace(v, refs=np.broadcast_to(v.refs, dims))


@lowers(aten.broadcast_tensors.default)
def _broadcast_tensors(ctx: Lowering, values: Sequence[Any]) -> list[Any]:
    if len(values) > 1:
        raise ctx.fail(f"broadcasts {len(values)} tensors to one shape; supported is one")
    return list(values)


@lowers(aten.slice.Tensor)
def _slice(
    ctx: Lowering, a: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    if isinstance(a, Table) and not a.moves and a.values.ndim == 4 and dim % 4 == 1:
        return _of_colours(a, slice(start, end, step))
    if isinstance(a, Table) and is_level(a):
        rank = len(ctx.shape_of(ctx.node.all_input_nodes[0]))
        return replace(a, moves=(*a.moves, ("slice", dim % rank, start, end, step)))
    v = ctx.view(a)
    axis = v.axes[v.axis(dim)]
    if axis == "c":
        index: list[Any] = [slice(None)] * v.refs.ndim
        index[v.ref_axis(dim)] = slice(start, end, step)
        return replace(v, refs=v.refs[tuple(index)])
    if axis == "n":
        batch = ctx.shape_of(ctx.captured.image)[0]
        if slice(start, end, step).indices(batch) == (0, batch, 1):
            return v
        raise ctx.fail("slices the batch")
    size = v.height if axis == "y" else v.width
    first, last, _ = slice(start, end).indices(size)
    if axis not in "yx":
        raise ctx.fail(f"slices the {axis} axis; supported are channels and positions")
    v = _crop(v, axis, first, max(last - first, 0))
    return v if step == 1 else every(ctx, v, axis, step)


def _of_colours(table: Table, chosen: slice) -> Table:
    """Some colours of a table of all."""
    colours = table.colours or tuple(range(table.values.shape[1]))
    return replace(table, values=table.values[:, chosen], colours=colours[chosen])


def every(ctx: Lowering, v: View, axis: str, step: int) -> View:
    """Every so-many-th row or column, from the first on."""
    return dealt(ctx, v, *((step, 1) if axis == "y" else (1, step)))[0]


def dealt(ctx: Lowering, v: View, rows: int, columns: int) -> list[View]:
    """Of each block of positions the first, the second, ..., row by row: those that the grid has of them.

    The rows of a row of blocks, one after another, are one long row in the same memory. So a copy for each column of
    a block that reads that memory in steps holds every part with that column, and a part is a cut of it.
    """
    sizes = [(-(-(v.height - i) // rows), -(-(v.width - j) // columns)) for i, j in np.ndindex(rows, columns)]
    if (v.refs == P.ZERO).all():
        return [replace(v, height=h, width=w, shift=(0, 0), window=(0, h, 0, w)) for h, w in sizes]
    if (rows, columns) == (1, 1):
        return [v]
    height, width = sizes[0]
    v = _enclosed(ctx, v, rows * height, columns * width)
    copies = []
    for j in range(columns):
        out = ctx.new_map(v.refs.size, height, rows * width, suffix=f".dealt/{j}")
        load = P.Instruction("load", refs=v.refs.reshape(-1), flat=(j, columns))
        ctx.build.add(P.MapOp(out, (load,), where(ctx.node)))
        copies.append(ctx.whole(out, v.axes, v.refs.shape))
    return [
        _crop(_crop(copies[j], "y", 0, h), "x", i * width, w)
        for (i, j), (h, w) in zip(np.ndindex(rows, columns), sizes, strict=True)
    ]


def _enclosed(ctx: Lowering, v: View, height: int, width: int) -> View:
    """The same in the first rows and columns of a map of that size."""
    if ctx.is_whole(v, (height, width)):
        return v
    v = ctx.clean(v, (0, v.height, 0, v.width))
    out = ctx.new_map(v.refs.size, height, width, suffix=".enclosed")
    load = P.Instruction("load", refs=v.refs.reshape(-1), offset=v.shift)
    ctx.build.add(P.MapOp(out, (load,), where(ctx.node)))
    return ctx.whole(out, v.axes, v.refs.shape)


def _crop(v: View, axis: str, first: int, size: int) -> View:
    if axis == "y":
        return replace(v, height=size, shift=(v.shift[0] + first, v.shift[1]))
    return replace(v, width=size, shift=(v.shift[0], v.shift[1] + first))


@lowers(aten.select.int)
def _select(ctx: Lowering, a: Any, dim: int, index: int) -> View | Table:
    if isinstance(a, Table) and a.values.ndim == 4:
        shape = ctx.shape_of(ctx.node.all_input_nodes[0])
        dim %= len(shape)
        if dim == 1 and not a.moves:
            index %= shape[1]
            a, shape = _of_colours(a, slice(index, index + 1)), (shape[0], 1, *shape[2:])
        if shape[dim] == 1:
            return reshape(ctx, a, shape, shape[:dim] + shape[dim + 1 :])
    v = ctx.view(a)
    dim = v.axis(dim)
    if v.axes[dim] in "yx" and not set(v.axes) - set("ncyx"):
        size = v.height if v.axes[dim] == "y" else v.width
        return _without(ctx, _crop(v, v.axes[dim], index % size, 1), dim)
    if v.axes[dim] != "c":
        raise ctx.fail(f"selects one entry of the {v.axes[dim]} axis")
    return replace(v, axes=v.axes[:dim] + v.axes[dim + 1 :], refs=v.refs.take(index, v.ref_axis(dim)))


def _without(ctx: Lowering, v: View, dim: int) -> View:
    """The same without an axis of positions of size 1: a row is a sequence, and so is a column."""
    rest = v.axes[:dim] + v.axes[dim + 1 :]
    v = ctx.settle(v)
    if v.axes[dim] == "x" and "y" in rest:
        v, rest = on_grid(ctx, v, 1, v.height), rest.replace("y", "x")
    return replace(v, axes=rest)


@lowers(aten.unbind.int)
def _unbind(ctx: Lowering, a: Any, dim: int = 0) -> list[View | Table]:
    return [_select(ctx, a, dim, i) for i in range(len(ctx.node.meta["val"]))]


@lowers(aten.split.Tensor, aten.unsafe_split.Tensor, aten.chunk.default, aten.split_with_sizes.default)
def _split(ctx: Lowering, a: Any, size: int | Sequence[int], dim: int = 0) -> list[View]:
    sizes = [t.shape[dim] for t in ctx.node.meta["val"]]
    starts = np.cumsum([0, *sizes])
    return [_slice(ctx, a, dim, int(s), int(s) + n) for s, n in zip(starts, sizes, strict=False)]


@lowers(operator.getitem)
def _getitem(ctx: Lowering, a: Any, index: int) -> Any:
    return a[index]


@lowers(aten.cat.default)
def _cat(ctx: Lowering, values: Sequence[Any], dim: int = 0) -> View | Table:
    if (table := _start_tokens(ctx, values, dim)) is not None:
        return table
    views = [ctx.view(v) for v in values if isinstance(v, Table | View)]
    like = max(views, key=lambda v: "y" in v.axes)
    dim = like.axis(dim)
    if like.axes[dim] in "yx":
        return joined(ctx, values, like, dim)
    if like.axes[dim] != "c":
        raise ctx.fail(f"concatenates along {like.axes[dim]}; supported are channels and positions")
    parts = aligned(ctx, [as_view(ctx, value, like) for value in values])
    return replace(parts[0], refs=np.concatenate([p.refs for p in parts], like.ref_axis(dim)))


@lowers(aten.hstack.default)
def _hstack(ctx: Lowering, values: Sequence[Any]) -> View:
    return _cat(ctx, values, 1)


def as_view(ctx: Lowering, value: Any, like: View, shape: Sequence[int] | None = None) -> View:
    """A value as a view of the axes of `like`: constants and conditions become maps, what is zero becomes none.

    shape: of the tensor, its own by default.
    """
    if isinstance(value, Table | View):
        return alike(ctx, ctx.view(value), like.axes)
    sizes = dict(zip(like.axes, value.shape if shape is None else shape, strict=True))
    h, w = (
        (like.height if shape is None else sizes.get("y", 1)),
        like.width if shape is None else sizes.get("x", 1),
    )
    dims = [s for s, a in zip(value.shape if shape is None else shape, like.axes, strict=True) if a == "c"]
    like = replace(like, height=h, width=w)
    if isinstance(value, torch.Tensor) and not value.any():
        return replace(like, refs=np.full(dims, P.ZERO), shift=(0, 0), window=(0, h, 0, w))
    (ins,) = ctx.operand(value, like, tuple(dims))
    refs = ins.refs
    if ins.fn != "load":  # the same at every position
        constant = np.full(math.prod(dims), ins.value, np.float32).reshape(1, 1, -1)
        out = ctx.new_map(constant.size, h, w, suffix=".constant")
        ctx.build.add(P.ConstantOp(out, constant, where(ctx.node)))
        refs = ctx.build.refs(out)
    return View(like.axes, refs.reshape(dims), h, w, (0, 0), (0, h, 0, w))


def aligned(ctx: Lowering, parts: Sequence[View]) -> list[View]:
    """Views of the same shift and window, of maps of the same grid, so that their channels may be mixed."""
    parts = [ctx.clean(p, (0, p.height, 0, p.width)) for p in parts]
    shown = [p for p in parts if (p.refs != P.ZERO).any()]
    if len({(p.axes, p.shift, p.height, p.width, p.window, ctx.grid_of(p)) for p in shown}) > 1:
        return [ctx.settle(p) for p in parts]
    return [replace(shown[0], refs=p.refs) for p in parts] if shown else parts


def joined(ctx: Lowering, values: Sequence[Any], like: View, dim: int) -> View:
    """Values side by side along an axis of positions: the sum of all, each with zeros around it."""
    sizes = [tuple(n.meta["val"].shape) if hasattr(n, "meta") else None for n in ctx.node.args[0]]  # type: ignore[union-attr]
    parts = [as_view(ctx, v, like, s) for v, s in zip(values, sizes, strict=True)]
    return side_by_side(ctx, parts, like.axes[dim])


def side_by_side(ctx: Lowering, parts: Sequence[View], axis: str) -> View:
    lengths = [p.height if axis == "y" else p.width for p in parts]
    total, at, placed = sum(lengths), 0, []
    for part, length in zip(parts, lengths, strict=True):
        if length:
            placed.append(_crop(replace(part, window=visible(part)), axis, -at, total))
        at += length
    shown = [p for p in placed if (p.refs != P.ZERO).any()] or placed[:1]
    return functools.reduce(lambda a, b: ctx.pointwise([a, b], ("add", 0, 1)), shown)


def is_level(a: Table) -> bool:
    """Whether a table holds integers that are still to be looked up."""
    return a.values.ndim == 4 and not a.values.is_floating_point()


def _pad_levels(a: Table, pads: Sequence[int], value: float) -> Table:
    row = torch.full_like(a.values[:1], value)
    return replace(
        a, values=torch.cat([a.values, row]), moves=(*a.moves, ("pad", tuple(pads), len(a.values)))
    )


def _start_tokens(ctx: Lowering, values: Sequence[Any], dim: int) -> Table | None:
    """Integers beside one constant: padding."""
    tables = [v for v in values if isinstance(v, Table) and is_level(v)]
    others = [v for v in values if isinstance(v, torch.Tensor) and v.numel() and (v == v.flatten()[0]).all()]
    if len(tables) != 1 or len(tables) + len(others) != len(values) or not others:
        return None
    dtype = tables[0].values.dtype
    if any(torch.promote_types(v.dtype, dtype) != dtype for v in others):
        return None
    (constant, *more) = {v.flatten()[0].item() for v in others}
    at = next(i for i, v in enumerate(values) if v is tables[0])
    dim %= len(ctx.shape_of(ctx.node))
    before, after = (sum(v.shape[dim] for v in part) for part in (values[:at], values[at + 1 :]))
    pads = [0, 0] * (len(ctx.shape_of(ctx.node)) - 1 - dim) + [before, after]
    return None if more else _pad_levels(tables[0], pads, constant)


def padded(ctx: Lowering, a: Any, pads: Sequence[int], values: torch.Tensor) -> View:
    """Padded along positions with `values`, of the size of the last axes, which is that of the unpadded ones."""
    v = ctx.view(_pad(ctx, a, pads))
    inside = [s or 1 for s in ctx.view(a).shape]
    inside = [s if i >= len(inside) - len(pads) // 2 else 1 for i, s in enumerate(inside)]
    around = torch.nn.functional.pad(torch.zeros(inside, dtype=torch.bool), list(pads), value=True)
    return ctx.pointwise([v, torch.where(around, values.float(), 0.0)], ("add", 0, 1)) if values.any() else v


def moved(ctx: Lowering, view: View, table: Table, dims: tuple[int, ...]) -> View:
    """The view of a table after its moves, which leave its last axes, of sizes `dims`, alone."""
    for kind, *args in table.moves:
        if kind == "reshape":
            old, new = args
            view = ctx.view(reshape(ctx, view, (*old, *dims), (*new, *dims)))
        elif kind == "permute":
            (order,) = args
            view = _permute(ctx, view, [*order, *range(len(order), len(order) + len(dims))])
        elif kind == "slice":
            view = ctx.view(_slice(ctx, view, *args))
        else:
            pads, row = args
            view = padded(ctx, view, [*[0, 0] * len(dims), *pads], table.values[row, 0])
    return view


@lowers(aten.pad.default, aten.constant_pad_nd.default)
def _pad(
    ctx: Lowering, a: Any, pads: Sequence[int], mode: Any = "constant", value: float | None = None
) -> View | Table:
    if isinstance(mode, int | float):  # constant_pad_nd has no mode
        mode, value = "constant", mode
    if isinstance(a, Table) and is_level(a) and mode == "constant" and min(pads) >= 0:
        return _pad_levels(a, pads, int(value) if value else 0)
    v = ctx.view(a)
    if mode != "constant":
        raise ctx.fail(
            f"pads with mode {mode!r}: copies of pixels, some of which are not drawn yet; supported is 'constant'"
        )
    around = None
    if value:
        inner = [s or 1 if i >= len(v.axes) - len(pads) // 2 else 1 for i, s in enumerate(v.shape)]
        around = torch.nn.functional.pad(torch.zeros(inner), list(pads), value=float(value))
    for i in range(len(pads) // 2):
        low, high = pads[2 * i], pads[2 * i + 1]
        if (low, high) == (0, 0):
            continue
        dim = len(v.axes) - 1 - i
        axis = v.axes[dim]
        if axis == "c":
            v = _pad_channels(v, v.ref_axis(dim), low, high)
        elif axis not in "yx":
            raise ctx.fail("pads the batch")
        else:
            size = v.height if axis == "y" else v.width
            v = _crop(v, axis, max(-low, 0), max(size + min(low, 0) + min(high, 0), 0))
            if low > 0 or high > 0:
                v = replace(v, window=visible(v))
            v = _crop(v, axis, -max(low, 0), size + low + high)
    return v if around is None else ctx.pointwise([v, around], ("add", 0, 1))


def _pad_channels(v: View, axis: int, low: int, high: int) -> View:
    kept = v.refs.take(range(max(-low, 0), v.refs.shape[axis] + min(high, 0)), axis)
    width = [(0, 0)] * v.refs.ndim
    width[axis] = (max(low, 0), max(high, 0))
    return replace(v, refs=np.pad(kept, width, constant_values=P.ZERO))
