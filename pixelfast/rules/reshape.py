"""Reshapes: axes renamed, channels regrouped; grids flattened to sequences, and folded again.

A reshape is matched, group by group of axes that keep their product, against the forms that can be planned. Axes of
channels may be split, merged and reordered in memory order, and the batch merged with channels or positions: all that
costs nothing. Between a grid and a sequence (positions in raster order, colours of a pixel side by side) lies a copy.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .. import plan as P
from ..capture import BATCH, where
from ..lower import Lowering, lowers
from ..values import Table, View, named

aten = torch.ops.aten

# Axes before and after; "c*" are any number of axes of channels.
_RENAMED = (
    ("n", "n"), ("y", "y"), ("x", "x"), ("b", "b"), ("r", "r"), ("q", "q"), ("k", "k"), ("c*", "c*"),
    ("nc+", "bc*"), ("bc*", "nc*"), ("nx", "r"), ("r", "nx"), ("xn", "s"), ("s", "xn"),
    ("xbc*", "sc*"), ("sc*", "xbc*"),
)  # fmt: skip
_COPIED = (
    ("yx", "x"), ("x", "yx"), ("nyx", "r"), ("r", "nyx"),
    ("yxc+", "x"), ("xc+", "x"), ("x", "yxc+"), ("x", "xc+"),
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Axes `old` of sizes `sizes` become axes `new` of sizes `becomes`."""

    old: str
    new: str
    sizes: tuple[int, ...]
    becomes: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, int]:
        sizes = dict(zip(self.new, self.becomes, strict=True))
        return sizes.get("y", 1), sizes.get("x", 1)


def match(
    axes: str, old: Sequence[int], new: Sequence[int], grid: tuple[int, int] | None = None
) -> list[Group] | None:
    """How axes of sizes `old` become axes of sizes `new`; None if there is no way.

    Sizes leave a choice: without a copy if possible; a sequence is folded to the image's `grid` rather than to another;
    and with as few axes as possible that are merged with positions, or appear.
    """
    of_sequences = [f for f in _RENAMED + _COPIED if "x" in f[0] and "y" not in f[0] and f != ("x", "x")]
    forms = [f for f in _RENAMED + _COPIED if "y" not in axes or f not in of_sequences]
    found = list(_matches(axes, tuple(old), tuple(new), forms))

    def cost(groups: list[Group]) -> tuple[int, ...]:
        copied = [g for g in groups if "x" in g.old + g.new and g.old != g.new]
        others = sum(g.grid != grid for g in copied if g.old == "x")
        merged = sum((g.old + g.new).count("c") for g in copied)
        return len(copied), sum(g.new == "r" for g in groups), others, merged, sum(not g.old for g in groups)

    return min(found, key=cost, default=None)


def _matches(
    axes: str, old: tuple[int, ...], new: tuple[int, ...], forms: Sequence[tuple[str, str]]
) -> Iterator[list[Group]]:
    if not axes and not new:
        yield []
    for before, after in forms:
        taken = re.match(before, axes)
        if taken is None:
            continue
        shortest = taken.end() if before[-1] != "+" else len(before) - 1
        fixed = len(after.rstrip("c+*"))
        most = fixed if after[-1] not in "+*" else len(new)
        for n, count in itertools.product(
            range(shortest, taken.end() + 1), range(most, fixed - (after[-1] != "+"), -1)
        ):
            if count > len(new) or n == count == 0 or math.prod(new[:count]) != math.prod(old[:n]):
                continue
            first = {"n": BATCH, "s": old[0] * BATCH if old else 0}  # what the sizes alone do not say
            if before[0] == "s" and after[0] == "x":
                first["x"] = old[0] // BATCH
            if after[0] in first and new[0] != first[after[0]] and before != after:
                continue
            if after[0] == "b" and new[0] % BATCH:
                continue
            letters = after[:fixed] + "c" * (count - fixed)
            for rest in _matches(axes[n:], old[n:], new[count:], forms):
                yield [Group(axes[:n], letters, old[:n], new[:count]), *rest]


@lowers(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def _view(ctx: Lowering, a: Any, _: Sequence[int]) -> View | Table:
    (source, *_rest) = ctx.node.all_input_nodes
    return reshape(ctx, a, ctx.shape_of(source), ctx.shape_of(ctx.node))


def reshape(ctx: Lowering, a: Any, old: Sequence[int], new: Sequence[int]) -> View | Table:
    """A tensor of shape `old`, as one of shape `new`."""
    if isinstance(a, Table) and a.values.ndim == 4:
        return replace(a, moves=(*a.moves, ("reshape", tuple(old), tuple(new))))
    v = ctx.view(a)
    groups = match(v.axes, old, new, ctx.captured.shape[1:])
    if groups is None and not set(v.axes) - set("ncyx"):  # whole images as vectors
        v = gathered(ctx, v)
        groups = match(v.axes, old, new)
    if groups is None:
        raise ctx.fail(
            f"reshape from {list(old)} ({v.axes}) to {list(new)} mixes positions with channels or batch; supported "
            "are positions in raster order, the colours of a pixel side by side"
        )
    before = 0  # axes of channels before the group
    for g in groups:
        if (g.old, g.new) in (("yx", "x"), ("nyx", "r")):
            v = on_grid(ctx, v, 1, v.height * v.width)
        elif (g.old, g.new) in (("x", "yx"), ("r", "nyx")):
            v = on_grid(ctx, v, *g.becomes[-2:])
        elif g.old.startswith(("yxc", "xc")) and g.new == "x":
            v = _interleave(ctx, v, before, g.old.count("c"))
        elif g.old == "x" and "c" in g.new:
            v = _deal(ctx, v, before, g)
        before += sum(a in "cb" for a in g.old)
    dims = [
        size // BATCH if axis == "b" else size
        for g in groups
        for size, axis in zip(g.becomes, g.new, strict=True)
        if axis in "cb"
    ]
    return replace(v, axes="".join(g.new for g in groups), refs=v.refs.reshape(dims))


def alike(ctx: Lowering, v: View, axes: str) -> View:
    """The same tensor with its axes named `axes`, if it can be: axes of size 1 may be named otherwise, axes of channels
    become positions, and positions channels."""
    v = of_rank(v, len(axes))
    if v.axes == axes or len(v.axes) != len(axes):
        return v
    renamed = named(v, axes)
    if renamed is not None:
        return renamed
    if "x" in v.axes and "y" in axes and "y" not in v.axes:
        at = axes.index("y")
        if (
            v.axes[at] == "x" and v.shape[axes.index("x")] == 1 and v.height == 1
        ):  # a sequence that is a column
            column = replace(on_grid(ctx, v, v.width, 1), axes=v.axes.replace("x", "y"))
            return named(column, axes) or v
        if v.axes[at] == "c" and v.axes == axes.replace("y", "c"):
            return _stacked(ctx, v, at, axes)
    if (v.axes, axes) == ("ncxc", "ncyx"):  # columns that were computed one by one
        return _columns(ctx, v)
    if set(v.axes + axes) - set("ncyx") or v.axes.index("n") != axes.index("n"):
        return v
    if set(v.axes) == set("nc") and "x" in axes:
        return spread(ctx, v, axes)
    if all(
        v.shape[i] == 1 for i, a in enumerate(axes) if a in "yx"
    ):  # as of a pixel whose colours are a sequence
        return named(gathered(ctx, v), axes) or v
    return v


def _stacked(ctx: Lowering, v: View, dim: int, axes: str) -> View:
    """Sequences as the rows of a grid."""
    v = ctx.clean(v, (0, 1, 0, v.width))
    rows = np.moveaxis(v.refs, v.ref_axis(dim), 0)
    out = ctx.new_map(rows[0].size, len(rows), v.width, suffix=".rows")
    for i, refs in enumerate(rows):
        load = P.Instruction("load", refs=refs.reshape(-1), offset=v.shift)
        ctx.build.add(P.MapOp(out, (load,), where(ctx.node), (i, 0, len(rows), 1)))
    return ctx.whole(out, axes, rows.shape[1:])


def _columns(ctx: Lowering, v: View) -> View:
    """Sequences, on the last axis, as the columns of a grid."""
    v = _whole(ctx, v)
    columns = np.moveaxis(v.refs, -1, 0)
    out = ctx.new_map(columns[0].size, v.width, len(columns), suffix=".columns")
    for i, refs in enumerate(columns):
        load = P.Instruction("load", refs=refs.reshape(-1), flat=(0, 1))
        ctx.build.add(P.MapOp(out, (load,), where(ctx.node), (0, i, 1, len(columns))))
    return ctx.whole(out, "ncyx", columns.shape[1:])


def of_rank(v: View, rank: int) -> View:
    """The same with axes of size 1 in front, as broadcasting adds them."""
    missing = rank - len(v.axes)
    if missing <= 0:
        return v
    return replace(v, axes="c" * missing + v.axes, refs=v.refs.reshape((1,) * missing + v.refs.shape))


def gathered(ctx: Lowering, v: View) -> View:
    """The same tensor without positions: those along y and x become channels of maps that have one."""
    at = [i for i, a in enumerate(v.axes.replace("n", "")) if a in "yx"]
    if not at:
        return v
    axes = v.axes.replace("n", "")
    v = _whole(ctx, v)
    sizes = [v.height if a == "y" else v.width for a in axes if a in "yx"]
    found = []
    for i in range(v.height * v.width):
        out = ctx.new_map(v.refs.size, 1, 1, suffix=f".flat/{i}")
        load = P.Instruction("load", refs=v.refs.reshape(-1), flat=(i, 1))
        ctx.build.add(P.MapOp(out, (load,), where(ctx.node)))
        found.append(ctx.build.refs(out).reshape(v.refs.shape))
    order = sorted(range(len(at)), key=lambda i: "yx".index(axes[at[i]]))
    refs = np.stack(found).reshape(*[sizes[i] for i in order], *v.refs.shape)
    refs = np.moveaxis(refs, range(len(at)), [at[i] for i in order])
    return replace(ctx.whole(out, "", [v.refs.size]), axes=re.sub("[yx]", "c", v.axes), refs=refs)


def spread(ctx: Lowering, v: View, axes: str) -> View:
    """The inverse of `gathered`: some axes of channels become positions."""
    letters = axes.replace("n", "")
    rest = [i for i, a in enumerate(letters) if a == "c"]
    positions = [letters.index(a) for a in "yx" if a in letters]
    by_position = v.refs.transpose([*positions, *rest])
    dims = by_position.shape[len(positions) :]
    height, width = (1, *by_position.shape[: len(positions)])[-2:]
    out = ctx.new_map(math.prod(dims), height, width, suffix=".grid")
    for i, refs in enumerate(by_position.reshape(height * width, -1)):
        phase = (i // width, i % width, height, width)
        ctx.build.add(P.MapOp(out, (P.Instruction("load", refs=refs),), where(ctx.node), phase))
    return ctx.whole(out, axes, dims)


def _whole(ctx: Lowering, v: View) -> View:
    """The same, neither shifted nor cut nor read from where there is no memory of a whole row after a row."""
    return v if ctx.is_whole(v, (v.height, v.width)) else ctx.settle(v)


def on_grid(ctx: Lowering, v: View, height: int, width: int) -> View:
    """The same positions, in raster order, on another grid."""
    v = _whole(ctx, v)
    out = ctx.new_map(v.refs.size, height, width, suffix=".reshape")
    load = P.Instruction("load", refs=v.refs.reshape(-1), flat=(0, 1))
    ctx.build.add(P.MapOp(out, (load,), where(ctx.node)))
    return ctx.whole(out, v.axes, v.refs.shape)


def _interleave(ctx: Lowering, v: View, at: int, count: int) -> View:
    """To a sequence in which the channels of axes `at` to `at + count` of a position follow each other."""
    v = _whole(ctx, v)
    moved = np.moveaxis(v.refs, range(at, at + count), range(count))
    rest = moved.shape[count:]
    colours = moved.reshape(math.prod(moved.shape[:count]), -1)
    out = ctx.new_map(colours.shape[1], 1, v.height * v.width * len(colours), suffix=".reshape")
    for i, refs in enumerate(colours):
        load = P.Instruction("load", refs=refs, flat=(0, 1))
        ctx.build.add(P.MapOp(out, (load,), where(ctx.node), (0, i, 1, len(colours))))
    return ctx.whole(out, v.axes, rest)


def _deal(ctx: Lowering, v: View, at: int, group: Group) -> View:
    """From a sequence, positions that follow each other to channels, on axes from `at` on."""
    v = _whole(ctx, v)
    sizes = dict(zip(group.new, group.becomes, strict=True))
    dims = group.becomes[group.new.index("c") :]
    count = math.prod(dims)
    dealt = []
    for i in range(count):
        out = ctx.new_map(v.refs.size, sizes.get("y", 1), sizes["x"], suffix=f".reshape/{i}")
        load = P.Instruction("load", refs=v.refs.reshape(-1), flat=(i, count))
        ctx.build.add(P.MapOp(out, (load,), where(ctx.node)))
        dealt.append(ctx.build.refs(out).reshape(v.refs.shape))
    refs = np.stack(dealt, axis=at).reshape(*v.refs.shape[:at], *dims, *v.refs.shape[at:])
    whole = ctx.whole(out, "", [v.refs.size])
    return replace(whole, axes=v.axes, refs=refs)
