"""Rules for linear layers, and what stands in their place at the input: embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import plan as P
from ..capture import where
from ..lower import Lowering, lowers
from ..values import Table, View
from .reshape import gathered

aten = torch.ops.aten


def floats(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().to(torch.float32).numpy()


def require_constants(ctx: Lowering, weight: Any, bias: Any) -> None:
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        raise ctx.fail("the weights depend on the image or on a condition")


@lowers(aten.embedding.default)
def _embedding(ctx: Lowering, weight: Any, a: Any, *_: Any) -> Table:
    if not isinstance(a, Table) or not isinstance(weight, Tensor):
        raise ctx.fail("an embedding of what is not a level of the image")
    return replace(a, values=weight.detach()[a.values.long()])


def _index(ctx: Lowering, table: Any, indices: Sequence[Any]) -> Table:
    """table[levels], along the first axis of any table."""
    if len(indices) != 1 or not isinstance(indices[0], Table) or not isinstance(table, Tensor):
        raise ctx.fail("an index that is not one tensor of the image's levels, into a constant")
    return replace(indices[0], values=table.detach()[indices[0].values.long()])


@lowers(aten.one_hot.default)
def _one_hot(ctx: Lowering, a: Any, classes: int = -1) -> Table:
    if not isinstance(a, Table) or classes < 1:
        raise ctx.fail(
            "a one-hot code of what is not a level of the image, or of an unknown number of classes"
        )
    return replace(a, values=torch.nn.functional.one_hot(a.values.long(), classes))


@lowers(aten.linear.default)
def _linear(ctx: Lowering, a: Any, weight: Any, bias: Any = None) -> View:
    """A product over the last axis."""
    require_constants(ctx, weight, bias)
    v = ctx.view(a)
    return contract(ctx, v, len(v.axes) - 1, weight, bias)


def contract(ctx: Lowering, v: View, dim: int, weight: Tensor, bias: Tensor | None = None) -> View:
    """The product over one axis of channels, as a 1x1 convolution; of positions, over whole images.

    weight: (out, in), or (..., out, in) where the axes of channels other than `dim` have matrices of their own. Each
    entry of those axes is a product of its own, so that none depends on another.
    """
    if v.axes[dim] in "yx" and not set(v.axes) - set("ncyx"):
        v = gathered(ctx, v)
    if v.axes[dim] != "c":
        raise ctx.fail(
            f"a product over axis {v.axes[dim]} of a tensor of axes {v.axes}; supported are channels, and the "
            "positions of whole images"
        )
    v = ctx.clean(v, (0, v.height, 0, v.width))
    axis = v.ref_axis(dim)
    w, b = weight.detach().to(torch.float32).numpy(), floats(bias)
    inputs = np.moveaxis(v.refs, axis, -1)
    try:
        matrices = np.broadcast_to(w, (*inputs.shape[:-1], *w.shape[-2:]))
    except ValueError:
        raise ctx.fail(
            f"matrices of shape {tuple(w.shape)} meet a tensor of axes {v.axes} and shape {v.shape}"
        ) from None
    results = np.empty((*inputs.shape[:-1], w.shape[-2]), np.int64)
    for at in np.ndindex(inputs.shape[:-1]):
        results[at] = _product(ctx, v, inputs[at], matrices[at], b)
    whole = replace(v, shift=(0, 0), window=(0, v.height, 0, v.width))
    return replace(whole, refs=np.moveaxis(results, -1, axis))


def _product(ctx: Lowering, v: View, refs: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """The channels of a map that holds w @ refs + bias. w: (out, in)."""
    kept = refs != P.ZERO
    out = ctx.new_map(len(w), v.height, v.width)
    matrix = np.ascontiguousarray(w.T[None, kept])
    ctx.build.add(P.ConvOp(out, refs[kept], (v.shift,), matrix, bias, where=where(ctx.node)))
    return ctx.build.refs(out)
