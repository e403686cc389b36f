"""Rules for convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import plan as P
from ..capture import where
from ..lower import Lowering, View, lowers

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
    if v.axes != "ncyx":
        raise ctx.fail(f"a convolution over axes {v.axes}; supported is ncyx")
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        raise ctx.fail("the weights depend on the image or on a condition")
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


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


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
