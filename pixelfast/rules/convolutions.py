"""Rules for convolutions over sequences and volumes, which are convolutions of rows, and of slices as channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..lower import Lowering, View, lowers
from .products import _conv2d, _conv_transpose2d
from .reshape import alike

aten = torch.ops.aten


def _row(ctx: Lowering, a: Any) -> View:
    v = ctx.view(a)
    v = alike(ctx, v, "ncx") if len(v.axes) == 3 else v
    if v.axes != "ncx":
        raise ctx.fail(f"a convolution over axes {v.axes}; supported is ncx, a sequence of all positions")
    return v


@lowers(aten.conv1d.default, aten.conv1d.padding)
def _conv1d(
    ctx: Lowering,
    a: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Any = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> View:
    """Over a sequence: a map of one row."""
    v = _row(ctx, a)
    padding = padding if isinstance(padding, str) else (0, *padding)
    kernel = weight.unsqueeze(2) if isinstance(weight, Tensor) else weight
    out = _conv2d(ctx, replace(v, axes="ncyx"), kernel, bias, (1, *stride), padding, (1, *dilation), groups)
    return replace(out, axes="ncx")


@lowers(aten.conv_transpose1d.default)
def _conv_transpose1d(
    ctx: Lowering,
    a: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> View:
    v = _row(ctx, a)
    kernel = weight.unsqueeze(2) if isinstance(weight, Tensor) else weight
    along = ((1, *stride), (0, *padding), (0, *output_padding), groups, (1, *dilation))
    out = _conv_transpose2d(ctx, replace(v, axes="ncyx"), kernel, bias, *along)
    return replace(out, axes="ncx")


@lowers(aten.conv3d.default)
def _conv3d(
    ctx: Lowering,
    a: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
    dilation: Sequence[int] = (1, 1, 1),
    groups: int = 1,
) -> View:
    """Over channels, slices and positions, of which the slices (colours, levels) become channels."""
    v = ctx.view(a)
    v = alike(ctx, v, "nccyx") if len(v.axes) == 5 else v
    if v.axes != "nccyx" or groups != 1 or not isinstance(weight, Tensor):
        raise ctx.fail(
            f"a convolution of volumes over axes {v.axes} in {groups} groups; supported is nccyx in 1, the third axis "
            "being one of channels"
        )
    slices = v.refs.shape[1]
    outs, ins, depth, *kernel = weight.shape
    out_slices = ctx.shape_of(ctx.node)[2]
    (by, *strides), (before, *pads), (apart, *dilations) = (_triple(x) for x in (stride, padding, dilation))
    dense = torch.zeros(outs, out_slices, ins, slices, *kernel)
    for d in range(out_slices):
        for i in range(depth):
            at = d * by - before + i * apart
            if 0 <= at < slices:
                dense[:, d, :, at] = weight[:, :, i]
    dense = dense.reshape(outs * out_slices, ins * slices, *kernel)
    shift = None if bias is None else bias.repeat_interleave(out_slices)
    flat = replace(v, axes="ncyx", refs=v.refs.reshape(-1))
    out = _conv2d(ctx, flat, dense, shift, strides, pads, dilations)
    return replace(out, axes="nccyx", refs=out.refs.reshape(outs, out_slices))


def _triple(value: Any) -> Sequence[int]:
    return [value] * 3 if isinstance(value, int) else [value[0]] * 3 if len(value) == 1 else value
