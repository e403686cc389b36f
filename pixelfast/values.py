"""Values: what a tensor of the image's path is while it is lowered.

    Table  a function of the level of one colour of one pixel, evaluated on all levels by PyTorch itself
    View   channels of maps, seen through a shift and a window: any slicing, padding, splitting, concatenating
           and transposing is arithmetic on a View, and yields no op
    Given  a tensor that depends on the conditions but not on the image
    Scores of attention, between the product that makes them and the one that takes them

Besides, there are folded tensors and Python numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from .capture import BATCH


@dataclass(frozen=True, eq=False)
class Table:
    """`values`: float32 or integer (levels, C, 1, 1, ...): entry [l, c] where colour c of the pixel has level l.

    `colours`: which the second axis are, all by default.
    `moves`: how the tensor came to be of another layout than (n, C, height, width, ...): reshapes, permutations, slices
    and paddings of the first four axes. Integers may be padded before they are looked up: the value that they are
    padded with has a row of its own in `values`, after those of the levels.
    """

    values: Tensor
    height: int
    width: int
    moves: tuple[tuple[Any, ...], ...] = ()
    colours: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class View:
    """Element (n, c..., y, x) is channel refs[c...] of its map at (y + shift[0], x + shift[1]), or zero outside.

    `axes` names the axes of the tensor: one "n", one "y", one "x", and the axes of `refs` in order, each a "c". A
    sequence, whose map has one row, has no "y"; whole images as vectors, whose maps have one position, have neither.
    "b" is the batch merged with an axis of `refs`, "r" with "x", "s" "x" with the batch.
    `window` is the part of the map that may be seen, as (y0, y1, x0, x1), in the map's positions.
    """

    axes: str
    refs: np.ndarray
    height: int
    width: int
    shift: tuple[int, int]
    window: tuple[int, int, int, int]

    @property
    def shape(self) -> tuple[int | None, ...]:
        sizes = iter(self.refs.shape)
        rows = BATCH * self.width
        known = {"n": None, "y": self.height, "x": self.width, "r": rows, "s": rows}
        of_refs = {"c": 1, "b": BATCH}
        return tuple(of_refs[a] * next(sizes) if a in of_refs else known[a] for a in self.axes)

    def axis(self, dim: int) -> int:
        return dim % len(self.axes)

    def ref_axis(self, dim: int) -> int:
        """The axis of `refs` that axis `dim` of the tensor is."""
        return sum(a in "cb" for a in self.axes[: self.axis(dim)])


@dataclass(frozen=True, eq=False)
class Scores:
    """Of attention, for each head, query position q and key position k: (query . key) * scale + bias; or, once
    `weights` is there, the softmax of that over k, times `weights`.

    `axes` names the axes of the tensor, of "ncbqk". `query` and `key` are Views of axes "ncxc": heads, positions and
    channels. The arrays are float32 and have an axis for each of the tensor's but for the batch's, "b" being the heads.
    """

    query: View
    key: View
    axes: str
    scale: np.ndarray
    bias: np.ndarray
    weights: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Given:
    node: fx.Node
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Condition:
    """Where a ConditionOp's values come from: a node's value, of axes as a View's, as (h, w, channels)."""

    node: fx.Node
    axes: str

    def arrange(self, value: Tensor) -> np.ndarray:
        """value: of a batch of equal conditions, of which the first is taken. Returns float32 (h, w, channels)."""
        array, axes = one_image(value.detach().to(torch.float32).cpu().numpy(), self.axes)
        positions = [axes.index(a) for a in "yx" if a in axes]
        channels = [i for i, a in enumerate(axes) if a == "c"]
        height, width = (array.shape[axes.index(a)] if a in axes else 1 for a in "yx")
        return array.transpose([*positions, *channels]).reshape(height, width, -1)


def named(view: View, axes: str) -> View | None:
    """The same tensor with its axes named otherwise; None if that differs in more than axes of size 1."""
    shape = view.shape
    if len(axes) != len(shape):
        return None
    of_size = [[a for a, s in zip(letters, shape, strict=True) if s != 1] for letters in (axes, view.axes)]
    if of_size[0] != of_size[1] or "b" in axes:
        return None
    dims = [s or 1 for a, s in zip(axes, shape, strict=True) if a == "c"]
    return replace(view, axes=axes, refs=view.refs.reshape(dims))


def one_image(array: np.ndarray, axes: str, image: int = 0) -> tuple[np.ndarray, str]:
    """One image of a batch: its values and axes, where "b" is "c", and "r" and "s" are "x"."""
    for letter, left in (("n", ""), ("b", "c"), ("r", "x"), ("s", "x")):
        at = axes.find(letter)
        if at < 0:
            continue
        images = BATCH if array.shape[at] > 1 else 1
        split = (-1, images) if letter == "s" else (images, -1)
        parts = array.reshape(*array.shape[:at], *split, *array.shape[at + 1 :])
        parts = parts.swapaxes(at, at + 1) if letter == "s" else parts
        array, axes = parts.take(min(image, images - 1), at), axes.replace(letter, left)
        array = array if left else array.squeeze(at)
    return array, axes


def visible(view: View) -> tuple[int, int, int, int]:
    """The window, cut to what lies inside the view, in the map's positions."""
    sy, sx = view.shift
    y0, y1, x0, x1 = view.window
    return max(y0, sy), min(y1, sy + view.height), max(x0, sx), min(x1, sx + view.width)
