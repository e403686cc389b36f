"""Readiness: when what a plan computes can be computed, in an order of the image. Pure numpy.

An *order* gives each colour c of each pixel (y, x) the step t at which it is drawn. The *readiness* of an element
is one more than the largest t among the sub-pixels that it depends on, 0 if there are none. It propagates by one
rule: an output is ready when the last input that reaches it is. Deadlines propagate the other way: an element is due
at the step of the first distribution that depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .links import Link, all_links, propagate
from .plan import HeadOp, InputOp, Plan

NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class Order:
    """`steps`: int32 (C, H, W), the step at which each sub-pixel is drawn. `skew` is None for a fixed image."""

    name: str
    skew: int | None
    steps: np.ndarray

    @property
    def count(self) -> int:
        return int(self.steps.max()) + 1


def wavefront(shape: tuple[int, int, int], skew: int, name: str = "wavefront") -> Order:
    """Pixels with equal skew*y + x are drawn together, their colours one after another."""
    colours, height, width = shape
    y, x, c = np.arange(height)[:, None], np.arange(width), np.arange(colours)[:, None, None]
    return Order(name, skew, ((skew * y + x) * colours + c).astype(np.int32))


def raster(shape: tuple[int, int, int]) -> Order:
    """One pixel after another, row by row."""
    return wavefront(shape, shape[2], "raster")


def known(shape: tuple[int, int, int]) -> Order:
    """Every pixel is known before the first step: for scoring images."""
    return Order("known", None, np.full(shape, -1, np.int32))


class Dependence:
    """The reads of every op of a plan, with the positions that they connect. Independent of the order."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.links = all_links(plan)

    def readiness(self, order: Order, cut: Mapping[int, np.ndarray] | None = None) -> list[np.ndarray]:
        """int32 (height, width) per op: when its inputs are ready.

        `cut`: for some ops, the step after which what they read is ignored.
        """
        plan = self.plan
        of_map = [np.zeros((m.height, m.width), np.int32) for m in plan.maps]

        def visit(i: int) -> np.ndarray:
            op = plan.ops[i]
            ready = np.zeros(plan.grid(op), np.int32)
            if isinstance(op, InputOp):
                ready[:] = order.steps[op.colour] + 1
            for link in self.links[i]:
                link.pull(np.maximum, of_map[link.read.map], ready, cut.get(i) if cut else None)
            if not isinstance(op, HeadOp):
                of_map[op.out][plan.written(op)] = ready
            return ready

        return propagate(plan, visit)

    def deadlines(
        self,
        until: np.ndarray,
        cut: Mapping[int, np.ndarray] | None = None,
        ready: Sequence[np.ndarray] = (),
    ) -> list[np.ndarray]:
        """int32 (height, width) per op: the earliest step whose distribution depends on the element.

        `until`: int32 (C, H, W), the step by which the distribution of each sub-pixel is needed. `cut`: as for
        `readiness`, which gave `ready`.
        """
        values = on_maps(self.plan, ready) if cut else []
        plan = self.plan
        of_map = [np.full((m.height, m.width), NEVER, np.int32) for m in plan.maps]

        def visit(i: int) -> np.ndarray:
            op = plan.ops[i]
            due = until[op.colour] if isinstance(op, HeadOp) else of_map[op.out][plan.written(op)]
            for link in self.links[i]:
                limit = (values[link.read.map], cut[i]) if cut and i in cut else None
                link.push(np.minimum, due, of_map[link.read.map], limit)
            return due

        return propagate(plan, visit, backward=True)

    def is_causal(self, order: Order) -> bool:
        ready = self.readiness(order)
        heads = ((op, r) for op, r in zip(self.plan.ops, ready, strict=True) if isinstance(op, HeadOp))
        return all((r <= order.steps[op.colour]).all() for op, r in heads)


def on_maps(plan: Plan, of_ops: Sequence[np.ndarray]) -> list[np.ndarray]:
    """From a value per position of each op to one per position of each map."""
    result = [np.zeros((m.height, m.width), of_ops[0].dtype) for m in plan.maps]
    for op, values in zip(plan.ops, of_ops, strict=True):
        if not isinstance(op, HeadOp):
            result[op.out][plan.written(op)] = values
    return result


def exceeds(link: Link, values: np.ndarray, limits: np.ndarray) -> bool:
    """Whether a value of the map is larger than the limit of an op's position that reads it."""
    found = np.zeros(limits.shape, values.dtype)
    link.pull(np.maximum, values, found)
    return bool((found > limits).any())


def lateness(plan: Plan, order: Order) -> list[float]:
    """For each map, how late it is ready: the mean over positions."""
    return [float(ready.mean()) for ready in on_maps(plan, Dependence(plan).readiness(order))]
