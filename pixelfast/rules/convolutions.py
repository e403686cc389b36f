"""Rules for convolutions: over grids; over sequences, as rows; over volumes, whose slices are channels."""

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
from ..values import View
from .products import floats, require_constants
from .reshape import alike

aten = torch.ops.aten


# --- over grids -----------------------------------------------------------------------------------------------


def pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def on_grid_of(ctx: Lowering, a: Any, what: str, supported: str = "is ncyx") -> View:
    """As channels of rows and columns. `what`: takes them."""
    v = ctx.view(a)
    v = alike(ctx, v, "ncyx") if len(v.axes) == 4 else v
    if v.axes != "ncyx":
        raise ctx.fail(f"{what} over axes {v.axes}; supported {supported}")
    return v


@lowers(aten.conv2d.default, aten.conv2d.padding)
def conv2d(
    ctx: Lowering,
    a: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1, 1),
    padding: Any = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> View:
    v = ctx.view(a)
    require_constants(ctx, weight, bias)
    if v.axes == "ncxy":
        turned = [x if isinstance(x, str) else pair(x)[::-1] for x in (stride, padding, dilation)]
        out = conv2d(ctx, replace(v, axes="ncyx"), weight.mT, bias, *turned, groups)
        return replace(out, axes="ncxy")
    v = on_grid_of(ctx, v, "a convolution", "are ncyx and ncxy")
    w = _dense(weight.detach().to(torch.float32).numpy(), groups)
    kernel, steps, apart = w.shape[2:], pair(stride), pair(dilation)
    if padding == "same":
        before = [d * (k - 1) // 2 for d, k in zip(apart, kernel, strict=True)]
        size = [v.height, v.width]
    else:
        before = [0, 0] if padding == "valid" else [*pair(padding)]
        along = zip((v.height, v.width), before, apart, kernel, steps, strict=True)
        size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in along]
    ends = [
        (n - 1) * s + d * (k - 1) - p + 1
        for n, s, d, k, p in zip(size, steps, apart, kernel, before, strict=True)
    ]
    v = ctx.clean(v, (-before[0], ends[0], -before[1], ends[1]))
    taps = [
        (i * apart[0] - before[0] + v.shift[0], j * apart[1] - before[1] + v.shift[1], w[:, :, i, j].T)
        for i, j in np.ndindex(kernel)
    ]
    out = ctx.new_map(len(w), *size)
    _add(ctx, out, v, taps, floats(bias), stride=steps)
    return ctx.whole(out, "ncyx", [len(w)])


@lowers(aten.conv_transpose2d.input)
def conv_transpose2d(
    ctx: Lowering,
    a: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    output_padding: Sequence[int] = (0, 0),
    groups: int = 1,
    dilation: Sequence[int] = (1, 1),
) -> View:
    """Output Y reads input y through kernel row i where Y = stride*y - padding + dilation*i: each phase of Y modulo the
    stride is a convolution of its own."""
    v = on_grid_of(ctx, a, "a transposed convolution")
    require_constants(ctx, weight, bias)
    w = _dense(weight.detach().to(torch.float32).numpy().swapaxes(0, 1), groups, transposed=True)
    kernel, (sy, sx), (py, px), (dy, dx) = w.shape[2:], pair(stride), pair(padding), pair(dilation)
    ey, ex = pair(output_padding)
    height = (v.height - 1) * sy - 2 * py + dy * (kernel[0] - 1) + ey + 1
    width = (v.width - 1) * sx - 2 * px + dx * (kernel[1] - 1) + ex + 1
    reach = (kernel[0] * dy + py, kernel[1] * dx + px)
    v = ctx.clean(v, (-reach[0], v.height + reach[0], -reach[1], v.width + reach[1]))
    out = ctx.new_map(len(w), height, width)
    for y, x in np.ndindex(min(sy, height), min(sx, width)):
        taps = [
            ((y + py - i * dy) // sy + v.shift[0], (x + px - j * dx) // sx + v.shift[1], w[:, :, i, j].T)
            for i, j in np.ndindex(kernel)
            if (y + py - i * dy) % sy == 0 and (x + px - j * dx) % sx == 0
        ]
        _add(ctx, out, v, taps, floats(bias), phase=(y, x, sy, sx))
    return ctx.whole(out, "ncyx", [len(w)])


def _add(
    ctx: Lowering,
    out: int,
    v: View,
    taps: Sequence[tuple[int, int, np.ndarray]],
    bias: np.ndarray | None,
    **how: Any,
) -> None:
    """Write a map, or a phase of it. taps: (dy, dx, matrix (in, out)), of which those of zeros are left out."""
    kept = v.refs != P.ZERO
    live = sorted((tap for tap in taps if tap[2].any()), key=lambda tap: tap[:2])
    outs = ctx.build.maps[out].channels
    matrices = [matrix[kept] for _, _, matrix in live] or [np.zeros((0, int(kept.sum()), outs), np.float32)]
    weight = np.ascontiguousarray(np.stack(matrices) if live else matrices[0])
    offsets = tuple((y, x) for y, x, _ in live)
    ctx.build.add(P.ConvOp(out, v.refs[kept], offsets, weight, bias, where=where(ctx.node), **how))


def _dense(w: np.ndarray, groups: int, *, transposed: bool = False) -> np.ndarray:
    """Weights (out, in, ...) of groups, which share outputs if transposed, as one product; zeros keep groups apart."""
    if groups == 1:
        return w
    outs, ins = w.shape[:2]
    shape = (outs * groups, ins) if transposed else (outs, ins * groups)
    dense = np.zeros((*shape, *w.shape[2:]), np.float32)
    for g in range(groups):
        o, i = (slice(g * n // groups, (g + 1) * n // groups) for n in shape)
        dense[o, i] = w[:, i] if transposed else w[o]
    return dense


# --- over sequences and volumes -------------------------------------------------------------------------------


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
    out = conv2d(ctx, replace(v, axes="ncyx"), kernel, bias, (1, *stride), padding, (1, *dilation), groups)
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
    out = conv_transpose2d(ctx, replace(v, axes="ncyx"), kernel, bias, *along)
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
    out = conv2d(ctx, flat, dense, shift, strides, pads, dilations)
    return replace(out, axes="nccyx", refs=out.refs.reshape(outs, out_slices))


def _triple(value: Any) -> Sequence[int]:
    return [value] * 3 if isinstance(value, int) else [value[0]] * 3 if len(value) == 1 else value
