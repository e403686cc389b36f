"""Conditions where the image's path needs a map of them: their axes are named after what they meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..lower import Lowering
from ..values import Given, Table, View, one_image


def as_map(ctx: Lowering, value: Given, axes: str) -> View:
    """A condition as a feature map of its own grid, its axes named `axes`."""
    if len(axes) != len(value.shape):
        raise ctx.fail(f"a condition of shape {value.shape} meets a tensor of axes {axes}")
    sizes, left = one_image(np.zeros(value.shape, bool), axes)
    h, w = (sizes.shape[left.index(a)] if a in left else 1 for a in "yx")
    dims = [size for size, axis in zip(sizes.shape, left, strict=True) if axis == "c"]
    like = View(axes, np.zeros(dims, np.int64), h, w, (0, 0), (0, h, 0, w))
    return View(axes, ctx.condition(value, like), h, w, (0, 0), (0, h, 0, w))


def same_axes(ctx: Lowering, values: Sequence[Any]) -> list[Any]:
    """Values of which those that are conditions have become maps, with the axes of the first feature map."""
    axes = next(ctx.view(v).axes for v in values if isinstance(v, Table | View))
    return [as_map(ctx, v, axes) if isinstance(v, Given) else v for v in values]


def factors(ctx: Lowering, a: Any, b: Any) -> tuple[Any, Any]:
    """The factors of a product, one of which may be a condition: the queries of attention, or the keys, transposed."""
    if isinstance(a, Table | View) and isinstance(b, Given):
        return a, _factor(ctx, b, ctx.view(a), "xc")
    if isinstance(a, Given) and isinstance(b, Table | View):
        return _factor(ctx, a, ctx.view(b), "cx"), b
    return a, b


def _factor(ctx: Lowering, value: Given, other: View, last: str) -> View:
    if other.axes[-2:] != last or "y" in other.axes or len(value.shape) != len(other.axes):
        raise ctx.fail(
            f"a product of a tensor of axes {other.axes} with a matrix that depends on a condition, of shape "
            f"{value.shape}; supported is attention: queries (..., positions, channels) times keys (..., channels, "
            "positions)"
        )
    return as_map(ctx, value, other.axes[:-2] + last[::-1])
