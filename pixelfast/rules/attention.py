"""Attention, by what it computes: a product of queries and keys, a softmax over positions, a product with values.

Between the two products a `Scores` stands for the matrix. Whatever scales, masks or shifts it by constants is folded
into two arrays; so spellings of a mask (-inf or -1e10 filled in, added, multiplied in) come out the same.

A key is left out where its bias is far below the best of its query's (its weight is exactly zero), except where that
holds for all keys of a query: their weights are then uniform, or nothing if all are -inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import plan as P
from ..capture import where
from ..lower import Lowering, lowers
from ..values import Given, Scores, Table, View
from .conditions import as_map, factors, same_axes
from .products import _linear, contract
from .reshape import match

aten = torch.ops.aten
kMasked = 5000.0  # a bias that much below another's leaves a weight of zero, unless scores are as large


# --- products -------------------------------------------------------------------------------------------------


@lowers(aten.matmul.default, aten.bmm.default, aten.mm.default, aten.mv.default)
def _matmul(ctx: Lowering, a: Any, b: Any) -> Any:
    if isinstance(b, Tensor):
        return _of_the_right(ctx, ctx.view(a), b)
    if isinstance(a, Tensor):
        return _of_the_left(ctx, a, ctx.view(b))
    a, b = factors(ctx, a, b)
    if not isinstance(a, Table | View) or not isinstance(b, Table | View):
        raise ctx.fail("a product with a condition; supported are constants, and attention")
    a, b = ctx.view(a), ctx.view(b)
    if a.axes[:-2] == b.axes[:-2] and a.axes[-2:] == "xc" and b.axes[-2:] == "cx" and "y" not in a.axes:
        axes = a.axes[:-2]
        heads = np.broadcast_shapes(a.refs.shape[:-1], b.refs.shape[:-1])
        ones = np.ones((1,) * (len(heads) + 2), np.float32)
        return Scores(_heads(ctx, a, heads), _heads(ctx, b, heads), axes + "qk", ones, 0 * ones)
    raise ctx.fail(
        f"a product of tensors of axes {a.axes} and {b.axes} that both depend on the image; supported is attention "
        "over all positions: queries (..., positions, channels) times keys (..., channels, positions)"
    )


def _of_the_right(ctx: Lowering, v: View, b: Tensor) -> View:
    """A product over the last axis with one matrix, a vector, or a matrix for each entry of axes of channels."""
    if b.ndim == 1:
        out = contract(ctx, v, len(v.axes) - 1, b[None])
        return replace(out, axes=out.axes[:-1], refs=out.refs[..., 0])
    return contract(ctx, v, len(v.axes) - 1, _by_channels(ctx, v, b.transpose(-1, -2), v.axes[:-2]))


def _of_the_left(ctx: Lowering, a: Tensor, v: View) -> View:
    """A product over the last axis but one: matrices times columns."""
    if a.ndim == 1:
        out = contract(ctx, v, len(v.axes) - 2, a[None])
        axis = out.ref_axis(len(v.axes) - 2)
        return replace(out, axes=out.axes[:-2] + out.axes[-1], refs=out.refs.squeeze(axis))
    rest = v.axes[:-2] + v.axes[-1]
    stack = _by_channels(ctx, v, a, v.axes[:-2])
    if v.axes[-1] == "c":
        stack = stack.unsqueeze(-3)  # the same for all columns
    assert rest.count("c") >= stack.ndim - 2 or stack.shape[: stack.ndim - 2].numel() == 1
    return contract(ctx, v, len(v.axes) - 2, stack)


def _by_channels(ctx: Lowering, v: View, b: Tensor, axes: str) -> Tensor:
    """A stack of matrices with an axis for each of channels among `axes`; along others it must be the same."""
    if b.ndim == 2:
        return b
    if b.ndim - 2 > len(axes):
        raise ctx.fail(f"a stack of matrices of shape {tuple(b.shape)} meets a tensor of axes {v.axes}")
    array = b.detach().numpy().reshape((1,) * (len(axes) + 2 - b.ndim) + tuple(b.shape))
    for i, a in enumerate(axes):
        if a != "c" and array.shape[i] > 1:
            if (array != array.take([0], i)).any():
                raise ctx.fail(f"matrices that differ along axis {a} of a tensor of axes {v.axes}")
            array = array.take([0], i)
    kept = [array.shape[i] for i, a in enumerate(axes) if a == "c"]
    return torch.from_numpy(array.reshape(*kept, *array.shape[-2:]).copy())


@lowers(aten.baddbmm.default)
def _baddbmm(ctx: Lowering, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    scores = _scale(ctx, _matmul(ctx, a, b), float(alpha))
    return _shift(ctx, scores, bias if beta == 1 else bias * beta)


@lowers(aten.addmm.default)
def _addmm(ctx: Lowering, bias: Any, a: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> View:
    if not isinstance(weight, Tensor):
        raise ctx.fail("the weights depend on the image or on a condition")
    if isinstance(bias, Tensor) and bias.ndim == 1 and len(bias) == weight.shape[1]:
        return _linear(ctx, a, weight.T * alpha, bias * beta)
    return ctx.pointwise(
        [_linear(ctx, a, weight.T * alpha), bias, float(beta)], ("mul", 1, 2), ("add", 0, -1)
    )


def _heads(ctx: Lowering, v: View, heads: Sequence[int]) -> View:
    """Queries, keys or values as a whole sequence of axes "ncxc"."""
    refs = np.broadcast_to(v.refs, (*heads, v.refs.shape[-1])).reshape(-1, v.refs.shape[-1])
    v = replace(v, axes="ncxc", refs=refs)
    return v if ctx.is_whole(v, (1, v.width)) else ctx.settle(v)


@lowers(aten.matmul.default, aten.bmm.default, scores=True)
def _weigh(ctx: Lowering, a: Any, b: Any) -> View:
    """Weights times values, or values, transposed, times weights."""
    scores, value, last = (a, b, "xc") if isinstance(a, Scores) else (b, a, "cx")
    if isinstance(value, Given):
        value = as_map(ctx, value, scores.axes[:-2] + last)
    if not isinstance(value, Table | View) or not isinstance(scores, Scores) or scores.weights is None:
        raise ctx.fail(
            "the scores of attention meet no softmax over positions before the product with values"
        )
    value = ctx.view(value)
    matrix = "qk" if last == "xc" else "kq"
    if value.axes != scores.axes[:-2] + last or scores.axes[-2:] != matrix:
        raise ctx.fail(f"weights of axes {scores.axes} meet values of axes {value.axes}")
    dims = value.refs.shape[:-1]
    out = _attend(ctx, scores, _heads(ctx, value, dims))
    return replace(out, axes=value.axes, refs=out.refs.reshape(*dims, -1))


@lowers(aten.scaled_dot_product_attention.default)
def _sdpa(
    ctx: Lowering,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> View:
    views = [ctx.view(v) for v in same_axes(ctx, (query, key, value))]
    if any(v.axes[-2:] != "xc" or v.axes[:-2] != views[0].axes[:-2] for v in views) or enable_gqa or dropout:
        raise ctx.fail(
            f"attention over axes {', '.join(v.axes for v in views)}, dropout {dropout}; supported are "
            "(..., positions, channels), as many heads of keys as of queries, no dropout"
        )
    q, k, v = views
    swapped = replace(k, axes=k.axes[:-2] + "cx")
    scores = _scale(ctx, _matmul(ctx, q, swapped), q.refs.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        mask = torch.ones(q.width, k.width, dtype=torch.bool).tril()
    if mask is not None:
        if isinstance(mask, Tensor) and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        scores = _shift(ctx, scores, mask)
    return _weigh(ctx, _softmax_of_scores(ctx, scores, -1), v)


# --- what is done to scores -----------------------------------------------------------------------------------


def _array(ctx: Lowering, scores: Scores, value: Any) -> np.ndarray:
    """A constant as float32, with an axis for each of the scores' but the batch's."""
    if isinstance(value, int | float | bool):
        value = torch.tensor(float(value))
    if not isinstance(value, Tensor):
        what = "condition" if isinstance(value, Given) else type(value).__name__
        raise ctx.fail(f"the scores of attention meet a {what}; supported are constants")
    array = value.detach().to(torch.float32).numpy()
    array = array.reshape((1,) * (len(scores.axes) - array.ndim) + array.shape)
    return ctx.of_one_image(array, scores.axes)[0]


def _scale(ctx: Lowering, scores: Scores, value: Any) -> Scores:
    array = _array(ctx, scores, value)
    if scores.weights is not None:
        return replace(scores, weights=scores.weights * array)
    return replace(scores, scale=scores.scale * array, bias=scores.bias * array)


def _shift(ctx: Lowering, scores: Scores, value: Any) -> Scores:
    if scores.weights is not None:
        raise ctx.fail("it adds to the weights of attention, after their softmax")
    return replace(scores, bias=scores.bias + _array(ctx, scores, value))


def _fill(ctx: Lowering, scores: Scores, mask: Any, value: Any) -> Scores:
    """`value` where the mask is true."""
    masked, filled = _array(ctx, scores, mask) != 0, _array(ctx, scores, value)
    zero = np.float32(0)
    if scores.weights is not None:
        if filled.any():
            raise ctx.fail(
                "it fills weights of attention with something other than zero, after their softmax"
            )
        return replace(scores, weights=np.where(masked, zero, scores.weights))
    return replace(
        scores, scale=np.where(masked, zero, scores.scale), bias=np.where(masked, filled, scores.bias)
    )


@lowers(aten.mul.Tensor, aten.mul_.Tensor, aten.mul.Scalar, scores=True)
def _mul(ctx: Lowering, a: Any, b: Any) -> Scores:
    return _scale(ctx, a, b) if isinstance(a, Scores) else _scale(ctx, b, a)


@lowers(aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar, scores=True)
def _div(ctx: Lowering, a: Any, b: Any) -> Scores:
    return _scale(ctx, a, 1 / b)


@lowers(aten.add.Tensor, aten.add_.Tensor, scores=True)
def _add(ctx: Lowering, a: Any, b: Any, *, alpha: float = 1) -> Scores:
    if isinstance(a, Scores):
        return _shift(ctx, a, b if alpha == 1 else b * alpha)
    return _shift(ctx, _scale(ctx, b, float(alpha)), a)


@lowers(aten.sub.Tensor, aten.sub_.Tensor, scores=True)
def _sub(ctx: Lowering, a: Any, b: Any, *, alpha: float = 1) -> Scores:
    if isinstance(a, Scores):
        return _shift(ctx, a, b * -alpha)
    return _shift(ctx, _scale(ctx, b, -float(alpha)), a)


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.masked_fill_.Scalar, scores=True)
def _masked_fill(ctx: Lowering, a: Any, mask: Any, value: Any) -> Scores:
    return _fill(ctx, a, mask, value)


@lowers(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, scores=True)
def _where(ctx: Lowering, condition: Any, a: Any, b: Any) -> Scores:
    if isinstance(a, Scores):
        return _fill(ctx, a, ~condition.bool(), b)
    return _fill(ctx, b, condition, a)


@lowers(aten.tril.default, scores=True)
def _tril(ctx: Lowering, a: Scores, diagonal: int = 0) -> Scores:
    shape = [size if axis in "qk" else 1 for size, axis in zip(ctx.shape_of(ctx.node), a.axes, strict=True)]
    return _scale(ctx, a, torch.ones(shape).tril(diagonal))


@lowers(
    aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default, aten._to_copy.default,
    aten.nan_to_num.default, aten.dropout.default, aten.expand.default, aten.to.dtype, scores=True,
)  # fmt: skip
def _same(ctx: Lowering, a: Scores, *_: Any, **__: Any) -> Scores:
    return a


def _moved(scores: Scores, axes: str, change: Callable[[np.ndarray], np.ndarray]) -> Scores:
    """Scores of other axes, all arrays changed likewise."""
    weights = None if scores.weights is None else change(scores.weights)
    return replace(scores, axes=axes, scale=change(scores.scale), bias=change(scores.bias), weights=weights)


@lowers(aten.permute.default, scores=True)
def _permute(ctx: Lowering, a: Scores, dims: Sequence[int]) -> Scores:
    axes = "".join(a.axes[d] for d in dims)
    kept = [d % len(dims) for d in dims if a.axes[d] != "n"]
    batch = a.axes.find("n")
    order = [d - (0 <= batch < d) for d in kept]
    return _moved(a, axes, lambda x: x.transpose(order))


@lowers(aten.transpose.int, scores=True)
def _transpose(ctx: Lowering, a: Scores, i: int, j: int) -> Scores:
    dims = list(range(len(a.axes)))
    dims[i], dims[j] = dims[j], dims[i]
    return _permute(ctx, a, dims)


@lowers(
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.unsqueeze.default,
    aten.squeeze.dim, aten.squeeze.dims, scores=True,
)  # fmt: skip
def _view(ctx: Lowering, a: Scores, *_: Any) -> Scores:
    """Heads and batch may be merged and split."""
    old, new = ctx.shape_of(ctx.node.all_input_nodes[0]), ctx.shape_of(ctx.node)
    groups = match(a.axes, old, new)
    if groups is None:
        raise ctx.fail(
            f"reshape of scores from {list(old)} ({a.axes}) to {list(new)}; a product of two tensors that are not "
            "constant is taken for the scores of attention"
        )
    axes = "".join(g.new for g in groups)

    def change(x: np.ndarray) -> np.ndarray:
        sizes, at = [], 0
        for g in groups:
            n = len(g.old.replace("n", ""))
            total, at = math.prod(x.shape[at : at + n]), at + n
            letters = g.new.replace("n", "")
            if total == 1:
                sizes += [1] * len(letters)
            else:
                images = math.prod(g.sizes) // total  # 1, or the batch where that is merged with heads
                known = [s for s, letter in zip(g.becomes, g.new, strict=True) if letter != "n"]
                sizes += [
                    s // images if letter == "b" else s for s, letter in zip(known, letters, strict=True)
                ]
        return x.reshape(sizes)

    return _moved(a, axes, change)


# --- softmax --------------------------------------------------------------------------------------------------


@lowers(aten.softmax.int, aten._softmax.default, aten._safe_softmax.default, scores=True)
def _softmax_of_scores(ctx: Lowering, a: Scores, dim: int, *_: Any, **__: Any) -> Scores:
    if a.weights is not None:
        raise ctx.fail("a second softmax of the scores of attention")
    axis = a.axes[dim]
    if axis == "q":  # then the first factor was the keys
        a = replace(a, query=a.key, key=a.query, axes=a.axes.translate(str.maketrans("qk", "kq")))
    elif axis != "k":
        raise ctx.fail(f"a softmax of scores of axes {a.axes} over {axis}; supported are positions")
    return replace(a, weights=np.ones_like(a.scale))


# --- the op ---------------------------------------------------------------------------------------------------


def _attend(ctx: Lowering, scores: Scores, value: View) -> View:
    """value: axes "ncxc". Returns likewise, at the positions of the queries."""
    query, key = scores.query, scores.key
    heads, q, k = query.refs.shape[0], query.width, key.width
    if value.width != k or value.refs.shape[0] != heads:
        raise ctx.fail(
            f"{key.width} keys in {heads} heads meet {value.width} values in {value.refs.shape[0]}"
        )
    assert scores.weights is not None
    scale, bias, weights = (_by_head(ctx, scores, x) for x in (scores.scale, scores.bias, scores.weights))
    bias = np.broadcast_to(bias, (len(bias), q, k))
    top = bias.max(axis=2, keepdims=True)
    bias = bias - np.where(top == -np.inf, 0, top)  # a softmax is the same for all shifts
    seen = bias > -kMasked
    live = seen & (np.broadcast_to(weights, (len(weights), q, k)) != 0)
    if (live.any(axis=2) & (live != seen).any(axis=2)).any():
        raise ctx.fail(
            "it drops weights after the softmax, whose sum is over all keys; mask the scores before it"
        )
    if (live.any(axis=(0, 2)) & ~live.any(axis=2)).any():
        raise ctx.fail("some query may attend to nothing in one head, but not in another")
    query, key, value = (_apart(ctx, v) for v in (query, key, value))
    query = _times(ctx, query, _of_queries(ctx, scale, live))
    out = ctx.new_map(value.refs.size, 1, q)
    of_query, of_key, of_value = (v.refs.reshape(-1) for v in (query, key, value))
    rows = np.where(live, bias, np.float32(-np.inf if len(live) > 1 else 0))
    keys = P.Keys.of(live.any(axis=0))
    ctx.build.add(
        P.AttendOp(
            out, heads, of_query, of_key, of_value, keys, rows if rows.any() else None, where(ctx.node)
        )
    )
    return _times(ctx, ctx.whole(out, "ncxc", value.refs.shape), _of_queries(ctx, weights, live))


def _apart(ctx: Lowering, v: View) -> View:
    """The same by a product of its own, where it is part of one: so keys lie side by side, and queries are not kept."""
    refs, back = np.unique(v.refs, return_inverse=True)  # heads may share their keys and values
    for op in ctx.build.ops:
        if not isinstance(op, P.ConvOp) or op.code or op.phase != P.WHOLE:
            continue
        m = ctx.build.maps[op.out]
        columns = refs - m.first
        if columns.min() < 0 or columns.max() >= m.channels or len(columns) >= m.channels:
            continue
        out = ctx.build.map(m.name, m.height, m.width, len(columns))
        bias = None if op.bias is None else op.bias[columns]
        ctx.build.add(replace(op, out=out, weight=np.ascontiguousarray(op.weight[:, :, columns]), bias=bias))
        whole = ctx.whole(out, v.axes, [len(columns)])
        return replace(whole, refs=whole.refs[back].reshape(v.refs.shape))
    return v


def _by_head(ctx: Lowering, scores: Scores, x: np.ndarray) -> np.ndarray:
    """An array of scores as (1 or heads, 1 or queries, 1 or keys)."""
    axes = scores.axes.replace("n", "")
    x = np.moveaxis(x, [axes.index(a) for a in "qk"], (-2, -1))
    if math.prod(x.shape[:-2]) not in (1, scores.query.refs.shape[0]):
        raise ctx.fail("the mask differs along some axes of heads only")
    return x.reshape(-1, *x.shape[-2:])


def _of_queries(ctx: Lowering, x: np.ndarray, live: np.ndarray) -> np.ndarray:
    """(1 or heads, queries): the factor that all live keys of a query share; where there are none, any."""
    x = np.broadcast_to(x, np.broadcast_shapes(x.shape, live.shape))
    low, high = np.where(live, x, np.inf).min(axis=2), np.where(live, x, -np.inf).max(axis=2)
    if (low < high).any():
        raise ctx.fail("the scores are scaled by a constant that differs between the keys of a query")
    some = low[low == high]
    return np.where(low == high, low, some[0] if some.size else 1).astype(np.float32)


def _times(ctx: Lowering, v: View, factor: np.ndarray) -> View:
    """factor: (1 or heads, positions)."""
    if (factor == 1).all():
        return v
    if (factor == factor.flat[0]).all():
        return ctx.pointwise([v, float(factor.flat[0])], ("mul", 0, 1))
    return ctx.pointwise([v, torch.from_numpy(factor[None, :, :, None])], ("mul", 0, 1))
