"""Rules for rounding to integers, by float arithmetic that is exact up to 2**22 and, for integers, beyond."""

from __future__ import annotations

from typing import Any

import torch

from ..lower import Lowering, lowers

aten = torch.ops.aten

_MAGIC = 12582912.0  # 1.5 * 2**23: adding it leaves no room for a fraction
_RANGE = 4194304.0  # 2**22, up to which that holds
HUGE = 2.0**100
# Lines that make 1 of what is positive and 0 of the rest, exactly: the least float times HUGE twice is above 1.
UP = (("max", -1, 0.0), ("mul", -1, HUGE), ("mul", -1, HUGE), ("min", -1, 1.0))


@lowers(aten.round.default)
def nearest(ctx: Lowering, a: Any) -> Any:
    """The nearest integer, the even one of two; what lies beyond the range is added again."""
    lines = [("max", 0, -_RANGE), ("min", -1, _RANGE), ("sub", 0, -1)]
    return ctx.pointwise([a], *lines, ("add", -2, _MAGIC), ("sub", -1, _MAGIC), ("add", -1, 5))


@lowers(aten.floor.default)
def floor(ctx: Lowering, a: Any) -> Any:
    """The nearest integer, less one where it is above."""
    return ctx.pointwise([nearest(ctx, a), a], ("sub", 0, 1), *UP, ("sub", 0, -1))


@lowers(aten.ceil.default)
def ceil(ctx: Lowering, a: Any) -> Any:
    """Minus the floor of minus the number."""
    return ctx.pointwise([floor(ctx, ctx.pointwise([a], ("neg", 0)))], ("neg", 0))


@lowers(aten.trunc.default)
def truncated(ctx: Lowering, a: Any) -> Any:
    """Towards zero, as floats become integers."""
    return ctx.pointwise([floor(ctx, a), ceil(ctx, a)], ("max", 0, 0.0), ("min", 1, 0.0), ("add", -1, 3))
