"""Rules for grids that grow and shrink: pools, windows, pixels to channels and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .. import plan as P
from ..capture import where
from ..lower import Lowering, lowers
from ..values import View
from .convolutions import on_grid_of, pair
from .layout import _crop, _pad, aligned, dealt
from .reshape import _view, on_grid

aten = torch.ops.aten


def enlarged(ctx: Lowering, v: View, rows: int, columns: int) -> View:
    """Every position so many times along y and x."""
    v = ctx.clean(v, (0, v.height, 0, v.width))
    return interleaved(ctx, [v] * (rows * columns), rows, columns)


def interleaved(ctx: Lowering, parts: Sequence[View], rows: int, columns: int) -> View:
    """Parts of one shape dealt to the positions of a grid, `rows` times `columns` as large."""
    like = parts[0]
    out = ctx.new_map(like.refs.size, like.height * rows, like.width * columns, suffix=".grown")
    for i, part in enumerate(parts):
        part = ctx.clean(part, (0, part.height, 0, part.width))
        load = P.Instruction("load", refs=part.refs.reshape(-1), offset=part.shift)
        ctx.build.add(P.MapOp(out, (load,), where(ctx.node), (i // columns, i % columns, rows, columns)))
    return ctx.whole(out, like.axes, like.refs.shape)


@lowers(aten.upsample_nearest2d.vec, aten._upsample_nearest_exact2d.vec)
def _upsample(ctx: Lowering, a: Any, *_: Any) -> View:
    v = on_grid_of(ctx, a, "an enlargement")
    height, width = ctx.shape_of(ctx.node)[-2:]
    if height % v.height or width % v.width:
        raise ctx.fail(
            f"it enlarges {v.height} x {v.width} to {height} x {width}; supported are integer factors"
        )
    return enlarged(ctx, v, height // v.height, width // v.width)


@lowers(aten.pixel_shuffle.default)
def _pixel_shuffle(ctx: Lowering, a: Any, factor: int) -> View:
    """Channels (c, i, j) to position (i, j) of a block (Shi et al. 2016, equation 4)."""
    v = on_grid_of(ctx, a, "a shuffle")
    refs = v.refs.reshape(-1, factor * factor)
    return interleaved(ctx, [replace(v, refs=r) for r in refs.T], factor, factor)


@lowers(aten.pixel_unshuffle.default)
def _pixel_unshuffle(ctx: Lowering, a: Any, factor: int) -> View:
    parts = aligned(ctx, dealt(ctx, on_grid_of(ctx, a, "a shuffle"), factor, factor))
    refs = np.stack([p.refs for p in parts], axis=1)
    return replace(parts[0], refs=refs.reshape(-1))


# --- windows --------------------------------------------------------------------------------------------------


def _windows(
    ctx: Lowering, v: View, kernel: Any, stride: Any, padding: Any, dilation: Any, value: float = 0
) -> list[View]:
    """For each offset in a window, row by row, what windows have there."""
    (rows, columns), (py, px), (dy, dx) = pair(kernel), pair(padding), pair(dilation)
    (sy, sx) = pair(stride)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in (
        (v.height, py, dy, rows, sy), (v.width, px, dx, columns, sx)
    )]  # fmt: skip
    if py or px:
        v = _pad(ctx, v, [px, px, py, py], "constant", value)
    parts, found = dealt(ctx, v, sy, sx), []
    for y, x in np.ndindex(rows, columns):
        part = parts[y * dy % sy * sx + x * dx % sx]
        found.append(_crop(_crop(part, "y", y * dy // sy, size[0]), "x", x * dx // sx, size[1]))
    return found


@lowers(aten.im2col.default)
def _im2col(ctx: Lowering, a: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> View:
    """Windows as channels (c, i, j), positions as a sequence."""
    parts = aligned(ctx, _windows(ctx, on_grid_of(ctx, a, "windows"), kernel, stride, padding, dilation))
    refs = np.stack([p.refs for p in parts], axis=1).reshape(-1)
    v = replace(parts[0], refs=refs)
    return replace(on_grid(ctx, v, 1, v.height * v.width), axes="ncx")


@lowers(aten.col2im.default)
def _col2im(ctx: Lowering, a: Any, size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> View:
    """Of windows of one position: another way to write a reshape."""
    if any(pair(x) != pair(to) for x, to in ((kernel, 1), (padding, 0), (stride, 1))):
        raise ctx.fail("it adds windows that overlap; supported are those of one position")
    return _view(ctx, a, ctx.shape_of(ctx.node))


@lowers(aten.unfold.default)
def _unfold(ctx: Lowering, a: Any, dim: int, size: int, step: int) -> View:
    """Windows along one axis as channels, the last axis."""
    v = ctx.view(a)
    axis = v.axes[v.axis(dim)]
    if axis == "c":
        at = v.ref_axis(dim)
        windows = np.lib.stride_tricks.sliding_window_view(v.refs, size, at)
        index: list[Any] = [slice(None)] * windows.ndim
        index[at] = slice(None, None, step)
        return replace(v, axes=v.axes + "c", refs=windows[tuple(index)])
    if axis not in "yx":
        raise ctx.fail(f"windows along {axis}; supported are channels and positions")
    kernel, stride = ((size, 1), (step, 1)) if axis == "y" else ((1, size), (1, step))
    parts = aligned(ctx, _windows(ctx, v, kernel, stride, 0, 1))
    return replace(parts[0], axes=v.axes + "c", refs=np.stack([p.refs for p in parts], axis=-1))


def _pooled(ctx: Lowering, a: Any, ceil: bool) -> View:
    if ceil:
        raise ctx.fail("a pool of windows that leave the grid; supported is ceil_mode=False")
    return on_grid_of(ctx, a, "a pool")


def _combined(ctx: Lowering, fn: str, parts: Sequence[View]) -> View:
    """One after another, by `fn`."""
    return ctx.pointwise(parts, *((fn, -1 if i > 1 else 0, i) for i in range(1, len(parts))))


@lowers(aten.avg_pool2d.default)
def _avg_pool(
    ctx: Lowering,
    a: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> View:
    """Sums of windows over how many positions they hold."""
    v = _pooled(ctx, a, ceil)
    windows = _windows(ctx, v, kernel, stride or kernel, padding, 1)
    count: Any = float(divisor or len(windows))
    if not count_padding and not divisor:
        one = torch.ones(1, 1, v.height, v.width)
        count = torch.nn.functional.avg_pool2d(one, kernel, stride or kernel, padding, divisor_override=1)
    return ctx.pointwise([_combined(ctx, "add", windows), count], ("div", 0, 1))


@lowers(aten.max_pool2d.default)
def _max_pool(
    ctx: Lowering,
    a: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil: bool = False,
) -> View:
    v = _pooled(ctx, a, ceil)
    return _combined(ctx, "max", _windows(ctx, v, kernel, stride or kernel, padding, dilation, -torch.inf))
