"""Rules for ops that only move values: arithmetic on Views, which costs nothing at run time."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .. import plan as P
from ..capture import where
from ..lower import Lowering, Table, View, lowers, visible
from .conditions import same_axes
from .reshape import _view, alike

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
        if v.axes[dim] == "c" and v.refs.shape[v.ref_axis(dim)] == 1:
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
    views = [_unsqueeze(ctx, v, dim % rank) for v in same_axes(ctx, values)]
    return _cat(ctx, views, dim % rank)


@lowers(aten.flip.default)
def _flip(ctx: Lowering, a: Any, dims: Sequence[int]) -> View:
    v = ctx.view(a)
    for dim in dims:
        if v.axes[v.axis(dim)] != "c":
            raise ctx.fail(f"flips the {v.axes[v.axis(dim)]} axis; supported are channels")
        v = replace(v, refs=np.flip(v.refs, v.ref_axis(dim)))
    return v


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
    if len(target) != len(v.axes):
        raise ctx.fail(f"expand adds axes: {v.shape} to {target}")
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
    if step != 1:
        raise ctx.fail(f"slices positions with step {step}; supported is 1")
    return _crop(v, axis, first, max(last - first, 0))


def _crop(v: View, axis: str, first: int, size: int) -> View:
    if axis == "y":
        return replace(v, height=size, shift=(v.shift[0] + first, v.shift[1]))
    return replace(v, width=size, shift=(v.shift[0], v.shift[1] + first))


@lowers(aten.select.int)
def _select(ctx: Lowering, a: Any, dim: int, index: int) -> View | Table:
    if isinstance(a, Table) and a.values.ndim == 4 and ctx.shape_of(ctx.node.all_input_nodes[0])[dim] == 1:
        return _view(ctx, a, ())
    v = ctx.view(a)
    dim = v.axis(dim)
    if v.axes[dim] != "c":
        raise ctx.fail(f"selects one entry of the {v.axes[dim]} axis")
    return replace(v, axes=v.axes[:dim] + v.axes[dim + 1 :], refs=v.refs.take(index, v.ref_axis(dim)))


@lowers(aten.split.Tensor, aten.chunk.default, aten.split_with_sizes.default)
def _split(ctx: Lowering, a: Any, size: int | Sequence[int], dim: int = 0) -> list[View]:
    sizes = [t.shape[dim] for t in ctx.node.meta["val"]]
    starts = np.cumsum([0, *sizes])
    return [_slice(ctx, a, dim, int(s), int(s) + n) for s, n in zip(starts, sizes, strict=False)]


@lowers(operator.getitem)
def _getitem(ctx: Lowering, a: Any, index: int) -> Any:
    return a[index]


@lowers(aten.cat.default)
def _cat(ctx: Lowering, values: Sequence[Any], dim: int = 0) -> View:
    views = [ctx.view(v) for v in values if isinstance(v, Table | View)]
    like = max(views, key=lambda v: "y" in v.axes)
    if like.axes[like.axis(dim)] != "c":
        raise ctx.fail(f"concatenates along {like.axes[like.axis(dim)]}; supported are channels")
    parts = []
    for value in values:
        if isinstance(value, Table | View):
            parts.append(alike(ctx, ctx.view(value), like.axes))
            continue
        sizes = [value.shape[i] for i, a in enumerate(like.axes) if a == "c"]
        (ins,) = ctx.operand(value, like, tuple(sizes))
        if ins.fn != "load":  # the same at every position
            constant = np.full(math.prod(sizes), ins.value, np.float32).reshape(1, 1, -1)
            out = ctx.new_map(constant.size, like.height, like.width, suffix=".constant")
            ctx.build.add(P.ConstantOp(out, constant, where(ctx.node)))
            ins = P.Instruction("load", refs=ctx.build.refs(out))
        assert ins.refs is not None
        h, w = like.height, like.width
        parts.append(View(like.axes, ins.refs.reshape(sizes), h, w, (0, 0), (0, h, 0, w)))
    parts = [ctx.clean(p, (0, p.height, 0, p.width)) for p in parts]
    if len({(p.axes, p.shift, p.height, p.width, p.window, ctx.grid_of(p)) for p in parts}) > 1:
        parts = [ctx.settle(p) for p in parts]
    return replace(parts[0], refs=np.concatenate([p.refs for p in parts], like.ref_axis(dim)))


@lowers(aten.pad.default, aten.constant_pad_nd.default)
def _pad(
    ctx: Lowering, a: Any, pads: Sequence[int], mode: Any = "constant", value: float | None = None
) -> View:
    v = ctx.view(a)
    if isinstance(mode, int | float):  # constant_pad_nd has no mode
        mode, value = "constant", mode
    if mode != "constant" or value not in (None, 0):
        raise ctx.fail(f"pads with mode {mode!r}, value {value}; supported is zero padding")
    for i in range(len(pads) // 2):
        low, high = pads[2 * i], pads[2 * i + 1]
        if (low, high) == (0, 0):
            continue
        dim = len(v.axes) - 1 - i
        axis = v.axes[dim]
        if axis == "c":
            v = _pad_channels(v, v.ref_axis(dim), low, high)
        elif axis == "n":
            raise ctx.fail("pads the batch")
        else:
            size = v.height if axis == "y" else v.width
            v = _crop(v, axis, max(-low, 0), max(size + min(low, 0) + min(high, 0), 0))
            if low > 0 or high > 0:
                v = replace(v, window=visible(v))
            v = _crop(v, axis, -max(low, 0), size + low + high)
    return v


def _pad_channels(v: View, axis: int, low: int, high: int) -> View:
    kept = v.refs.take(range(max(-low, 0), v.refs.shape[axis] + min(high, 0)), axis)
    width = [(0, 0)] * v.refs.ndim
    width[axis] = (max(low, 0), max(high, 0))
    return replace(v, refs=np.pad(kept, width, constant_values=P.ZERO))
