"""Rules for convolutions, linear layers, and what stands in their place at the input: embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import plan as P
from ..capture import where
from ..lower import Lowering, Table, View, lowers
from .reshape import alike

aten = torch.ops.aten


@lowers(aten.conv2d.default, aten.conv2d.padding)
def _conv2d(
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
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        raise ctx.fail("the weights depend on the image or on a condition")
    v = alike(ctx, v, "ncyx") if len(v.axes) == 4 else v
    if v.axes != "ncyx":
        raise ctx.fail(f"a convolution over axes {v.axes}; supported is ncyx")
    w = weight.detach().to(torch.float32).numpy()
    outs, ins, rows, columns = w.shape
    if groups > 1:  # as one dense product; the zeros keep groups apart
        dense = np.zeros((outs, ins * groups, rows, columns), np.float32)
        for g in range(groups):
            o = slice(g * outs // groups, (g + 1) * outs // groups)
            dense[o, g * ins : (g + 1) * ins] = w[o]
        w = dense
    (sy, sx), (dy, dx) = _pair(stride), _pair(dilation)
    if padding == "same":
        top, left = dy * (rows - 1) // 2, dx * (columns - 1) // 2
    else:
        top, left = (0, 0) if padding == "valid" else _pair(padding)
    height, width = ctx.shape_of(ctx.node)[-2:]
    box = (
        -top,
        (height - 1) * sy + dy * (rows - 1) - top + 1,
        -left,
        (width - 1) * sx + dx * (columns - 1) - left + 1,
    )
    v = ctx.clean(v, box)
    taps, matrices = [], []
    for i in range(rows):
        for j in range(columns):
            if w[:, :, i, j].any():
                taps.append((i * dy - top + v.shift[0], j * dx - left + v.shift[1]))
                matrices.append(w[:, :, i, j].T)
    kept = v.refs != P.ZERO
    stacked = np.stack(matrices) if matrices else np.zeros((0, len(v.refs), outs), np.float32)
    out = ctx.new_map(outs, height, width)
    ctx.build.add(
        P.ConvOp(
            out,
            v.refs[kept],
            tuple(taps),
            np.ascontiguousarray(stacked[:, kept]),
            None if bias is None else bias.detach().to(torch.float32).numpy(),
            (sy, sx),
            where=where(ctx.node),
        )
    )
    return ctx.whole(out, "ncyx", [outs])


@lowers(aten.conv_transpose2d.input)
def _conv_transpose2d(
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
    v = ctx.view(a)
    if v.axes != "ncyx" or groups != 1 or not isinstance(weight, Tensor):
        raise ctx.fail(
            f"a transposed convolution over axes {v.axes} in {groups} groups; supported is ncyx in 1"
        )
    w = weight.detach().to(torch.float32).numpy()  # (in, out, rows, columns)
    outs = w.shape[1]
    b = None if bias is None else bias.detach().to(torch.float32).numpy()
    (sy, sx), (py, px), (dy, dx) = _pair(stride), _pair(padding), _pair(dilation)
    height, width = ctx.shape_of(ctx.node)[-2:]
    reach = (w.shape[2] * dy + py, w.shape[3] * dx + px)
    v = ctx.clean(v, (-reach[0], v.height + reach[0], -reach[1], v.width + reach[1]))
    kept = v.refs != P.ZERO
    out = ctx.new_map(outs, height, width)
    for phase_y in range(min(sy, height)):
        for phase_x in range(min(sx, width)):
            taps = sorted(
                ((phase_y + py - i * dy) // sy + v.shift[0], (phase_x + px - j * dx) // sx + v.shift[1], i, j)
                for i in range(w.shape[2])
                for j in range(w.shape[3])
                if (phase_y + py - i * dy) % sy == 0
                and (phase_x + px - j * dx) % sx == 0
                and w[:, :, i, j].any()
            )
            matrices = [w[kept, :, i, j] for _, _, i, j in taps]
            stacked = np.stack(matrices) if taps else np.zeros((0, int(kept.sum()), outs), np.float32)
            offsets = tuple((y, x) for y, x, _, _ in taps)
            phase = (phase_y, phase_x, sy, sx)
            ctx.build.add(
                P.ConvOp(
                    out,
                    v.refs[kept],
                    offsets,
                    np.ascontiguousarray(stacked),
                    b,
                    phase=phase,
                    where=where(ctx.node),
                )
            )
    return ctx.whole(out, "ncyx", [outs])


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


@lowers(aten.embedding.default)
def _embedding(ctx: Lowering, weight: Any, a: Any, *_: Any) -> Table:
    if not isinstance(a, Table) or not isinstance(weight, Tensor):
        raise ctx.fail("an embedding of what is not a level of the image")
    return replace(a, values=weight.detach()[a.values.long()])


@lowers(aten.index.Tensor)
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
    """A 1x1 convolution over the last axis."""
    v = ctx.view(a)
    if v.axes[-1] != "c" or v.axes.count("c") != 1 or not isinstance(weight, Tensor):
        raise ctx.fail(f"a linear layer over axes {v.axes}; supported is one channel axis, the last")
    v = ctx.clean(v, (0, v.height, 0, v.width))
    kept = v.refs != P.ZERO
    w = weight.detach().to(torch.float32).numpy()
    b = None if bias is None else bias.detach().to(torch.float32).numpy()
    out = ctx.new_map(w.shape[0], v.height, v.width)
    matrix = np.ascontiguousarray(w.T[None, kept])
    ctx.build.add(P.ConvOp(out, v.refs[kept], (v.shift,), matrix, b, where=where(ctx.node)))
    return ctx.whole(out, v.axes, [w.shape[0]])
