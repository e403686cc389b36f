"""Rules for what joins all channels of a position: sums, means, extremes, softmax.

A sum is a product with ones, one op whose order is defined as that of every product. Extremes join the far half of the
channels to the near one until one is left. Positions are never joined: what sums over them sees the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..lower import Lowering, lowers
from ..values import View
from .functions import power
from .masks import truth
from .products import contract

aten = torch.ops.aten

Dims = int | Sequence[int] | None

_LOWEST = torch.finfo(torch.float32).min


def summed(ctx: Lowering, v: View, axes: Sequence[int]) -> View:
    """Channels along some axes of `refs` added up; the axes stay, of size 1."""
    refs = np.moveaxis(v.refs, axes, range(-len(axes), 0))
    rest = refs.shape[: -len(axes)]
    ones = np.ones((1, math.prod(refs.shape[-len(axes) :])), np.float32)
    matrix = torch.from_numpy(np.kron(np.eye(math.prod(rest), dtype=np.float32), ones))
    out = contract(ctx, replace(v, axes="nc", refs=refs.reshape(-1)), 1, matrix)
    refs = np.moveaxis(out.refs.reshape(*rest, *[1] * len(axes)), range(-len(axes), 0), axes)
    return replace(out, axes=v.axes, refs=refs)


def folded(ctx: Lowering, fn: str, v: View, axes: Sequence[int]) -> View:
    """All channels along some axes of `refs` joined by `fn`; the axes stay, of size 1."""
    for axis in axes:
        while (n := v.refs.shape[axis]) > 1:
            near, far, rest = np.split(v.refs, [n // 2, n // 2 * 2], axis)
            joined = ctx.pointwise([replace(v, refs=near), replace(v, refs=far)], (fn, 0, 1))
            if rest.size:
                rest = ctx.pointwise([replace(v, refs=rest)]).refs
            v = replace(joined, refs=np.concatenate([joined.refs, rest], axis))
    return v


def channel_axes(ctx: Lowering, v: View, dims: Dims, what: str) -> list[int]:
    """The axes of `refs` that axes `dims` of the tensor are; those of positions may be there where their size is 1."""
    dims = range(len(v.axes)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    letters = {v.axis(d): v.axes[v.axis(d)] for d in dims}
    large = [a for d, a in letters.items() if a != "c" and v.shape[d] != 1]
    if large:
        raise ctx.fail(
            f"{what} over axes {''.join(letters.values())} of a tensor of axes {v.axes} joins positions or images, of "
            "which some are not drawn yet; supported are channels"
        )
    return [v.ref_axis(d) for d, a in letters.items() if a == "c"]


def _reduced(ctx: Lowering, v: View, dims: Dims, keep: bool) -> View:
    """Without the axes that were joined, unless they are kept."""
    if keep:
        return v
    dims = range(len(v.axes)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {v.axis(d) for d in dims}
    refs = v.refs.squeeze(tuple(v.ref_axis(d) for d in gone if v.axes[d] == "c"))
    return replace(v, axes="".join(a for i, a in enumerate(v.axes) if i not in gone), refs=refs)


@lowers(aten.sum.dim_IntList)
def _sum(ctx: Lowering, a: Any, dims: Dims, keep: bool = False, **_: Any) -> View:
    v = ctx.view(a)
    axes = channel_axes(ctx, v, dims, "a sum")
    return _reduced(ctx, summed(ctx, v, axes) if axes else v, dims, keep)


@lowers(aten.mean.dim)
def _mean(ctx: Lowering, a: Any, dims: Dims, keep: bool = False, **_: Any) -> View:
    v = ctx.view(a)
    return _reduced(ctx, mean(ctx, v, channel_axes(ctx, v, dims, "a mean")), dims, keep)


@lowers(
    aten.sum.default,
    aten.mean.default,
    aten.max.default,
    aten.min.default,
    aten.std.default,
    aten.var.default,
)
def _of_everything(ctx: Lowering, a: Any, *_: Any, **__: Any) -> View:
    channel_axes(ctx, ctx.view(a), None, "what joins everything,")
    raise ctx.fail("it joins the whole tensor; name the axes of channels")


def mean(ctx: Lowering, v: View, axes: Sequence[int]) -> View:
    count = math.prod(v.refs.shape[i] for i in axes)
    return ctx.pointwise([summed(ctx, v, axes), float(count)], ("div", 0, 1)) if axes else v


def centred(ctx: Lowering, v: View, axes: Sequence[int], correction: float) -> tuple[View, View]:
    """What channels differ from their mean by, and their variance."""
    count = math.prod(v.refs.shape[i] for i in axes)
    difference = ctx.pointwise([v, mean(ctx, v, axes)], ("sub", 0, 1))
    squares = summed(ctx, ctx.pointwise([difference], ("mul", 0, 0)), axes)
    return difference, ctx.pointwise([squares, float(count - correction)], ("div", 0, 1))


@lowers(aten.var.correction)
def _var(
    ctx: Lowering, a: Any, dims: Dims = None, *, correction: float | None = 1, keepdim: bool = False
) -> View:
    v = ctx.view(a)
    axes = channel_axes(ctx, v, dims, "a variance")
    variance = centred(ctx, v, axes, 1 if correction is None else correction)[1]
    return _reduced(ctx, variance, dims, keepdim)


@lowers(aten.std.correction)
def _std(ctx: Lowering, a: Any, dims: Dims = None, **options: Any) -> View:
    return ctx.pointwise([_var(ctx, a, dims, **options)], ("sqrt", 0))


@lowers(aten.var_mean.correction)
def _var_mean(
    ctx: Lowering, a: Any, dims: Dims = None, *, keepdim: bool = False, **options: Any
) -> list[View]:
    return [_var(ctx, a, dims, keepdim=keepdim, **options), _mean(ctx, a, dims, keepdim)]


@lowers(aten.amax.default)
def _amax(ctx: Lowering, a: Any, dims: Dims = None, keep: bool = False) -> View:
    v = ctx.view(a)
    return _reduced(ctx, folded(ctx, "max", v, channel_axes(ctx, v, dims, "a maximum")), dims, keep)


@lowers(aten.amin.default)
def _amin(ctx: Lowering, a: Any, dims: Dims = None, keep: bool = False) -> View:
    v = ctx.view(a)
    return _reduced(ctx, folded(ctx, "min", v, channel_axes(ctx, v, dims, "a minimum")), dims, keep)


@lowers(aten.max.dim)
def _max(ctx: Lowering, a: Any, dim: int, keep: bool = False) -> list[View | None]:
    return [_amax(ctx, a, dim, keep), None]  # without the indices


@lowers(aten.min.dim)
def _min(ctx: Lowering, a: Any, dim: int, keep: bool = False) -> list[View | None]:
    return [_amin(ctx, a, dim, keep), None]


@lowers(aten.prod.dim_int)
def _prod(ctx: Lowering, a: Any, dim: int, keep: bool = False, **_: Any) -> View:
    v = ctx.view(a)
    return _reduced(ctx, folded(ctx, "mul", v, channel_axes(ctx, v, dim, "a product")), dim, keep)


@lowers(aten.linalg_vector_norm.default)
def _norm(ctx: Lowering, a: Any, order: float = 2, dims: Dims = None, keep: bool = False, **_: Any) -> View:
    """The largest magnitude, or the root of the sum of powers."""
    v = ctx.view(a)
    axes = channel_axes(ctx, v, dims, "a norm")
    sizes = ctx.pointwise([v], ("abs", 0))
    if order == math.inf:
        return _reduced(ctx, folded(ctx, "max", sizes, axes), dims, keep)
    if order <= 0:
        raise ctx.fail(f"a norm of order {order}; supported are positive ones")
    total = summed(ctx, power(ctx, sizes, order), axes)
    return _reduced(ctx, power(ctx, total, 1 / order), dims, keep)


@lowers(aten.cumsum.default)
def _cumsum(ctx: Lowering, a: Any, dim: int, **_: Any) -> View:
    """Channel i is the sum of the first i + 1."""
    v = ctx.view(a)
    if v.axes[v.axis(dim)] != "c":
        channel_axes(ctx, v, dim, "a sum")
        return v
    return contract(ctx, v, v.axis(dim), torch.ones(2 * (v.refs.shape[v.ref_axis(dim)],)).tril())


@lowers(aten.any.dim, aten.any.dims)
def _any(ctx: Lowering, a: Any, dims: Dims, keep: bool = False) -> View:
    return _amax(ctx, truth(ctx, a, 0), dims, keep)


@lowers(aten.all.dim, aten.all.dims)
def _all(ctx: Lowering, a: Any, dims: Dims, keep: bool = False) -> View:
    return _amin(ctx, truth(ctx, a, 0), dims, keep)


# --- softmax --------------------------------------------------------------------------------------------------


def _exponentials(ctx: Lowering, v: View, axes: Sequence[int]) -> tuple[View, View, View]:
    """The largest channel, exponentials of what channels differ from it by, and their sum.

    Where the largest is minus infinity, the lowest number stands for it: exponentials of minus infinity are 0, while
    from itself it differs by no number.
    """
    largest = folded(ctx, "max", v, axes)
    e = ctx.pointwise([v, largest], ("max", 1, _LOWEST), ("sub", 0, -1), ("exp", -1))
    return largest, e, summed(ctx, e, axes)


@lowers(aten.softmax.int, aten._softmax.default)
def _softmax(ctx: Lowering, a: Any, dim: int, *_: Any, **__: Any) -> View:
    v = ctx.view(a)
    _largest, e, total = _exponentials(ctx, v, channel_axes(ctx, v, dim, "a softmax"))
    return ctx.pointwise([e, total], ("div", 0, 1))


@lowers(aten.log_softmax.int, aten._log_softmax.default)
def _log_softmax(ctx: Lowering, a: Any, dim: int, *_: Any, **__: Any) -> View:
    v = ctx.view(a)
    largest, _e, total = _exponentials(ctx, v, channel_axes(ctx, v, dim, "a softmax"))
    return ctx.pointwise([v, largest, total], ("sub", 0, 1), ("log", 2), ("sub", -2, -1))


@lowers(aten.logsumexp.default)
def _logsumexp(ctx: Lowering, a: Any, dims: Dims, keep: bool = False) -> View:
    v = ctx.view(a)
    largest, _e, total = _exponentials(ctx, v, channel_axes(ctx, v, dims, "a sum"))
    return _reduced(ctx, ctx.pointwise([largest, total], ("log", 1), ("add", 0, -1)), dims, keep)
