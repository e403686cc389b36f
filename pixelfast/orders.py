"""Which order a plan is drawn in, and its schedule there; what was found out for one plan is known of all alike."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import passes
from . import plan as P
from . import readiness as R
from . import schedule as S
from ._recent import Recent
from .causality import check_causal, find_skew
from .receptive import seen_by

ORDERS = ("auto", "raster", "wavefront")

_IN_ROWS = 0.92  # of the estimate: a row, all of it at once, is read in the order in which it lies

_ORDERS: Recent[R.Order] = Recent(32)
_SCHEDULES: Recent[tuple[list[float], Callable[[P.Plan], S.Schedule]]] = Recent(16)


def schedule_in(plan: P.Plan, order: R.Order, *, early: bool = False) -> S.Schedule:
    """Fuse and schedule; what was found out for another plan of the same structure is used again.

    early: as `alone` of `passes.share`, for hardware on which a turn is long and work beside it costs little.
    """
    key = plan.structure, order.name, order.skew, early
    known = _SCHEDULES.get(key)
    lateness = known[0] if known else R.lateness(plan, order)
    fused = passes.share(passes.fuse(plan, lateness), alone=early)
    fused.verify()
    if known:
        return known[1](fused)
    schedule = S.schedule(fused, order, early=early)
    _SCHEDULES.put(key, (lateness, schedule.maker()))
    return schedule


def choose(plan: P.Plan, order: str, *, early: bool = False) -> S.Schedule:
    """The schedule in an order by name: one of ORDERS. `early`: as for `schedule_in`."""
    key = plan.structure, order
    found = _ORDERS.get(key) or _ORDERS.put(key, _find_order(plan, order))
    return schedule_in(plan, found, early=early)


def _find_order(plan: P.Plan, order: str) -> R.Order:
    raster = R.raster(plan.shape)
    if order == "raster":
        check_causal(plan, raster)  # here, since fused ops belong to several modules
        return raster
    skew = find_skew(plan)
    if order == "wavefront":
        return R.wavefront(plan.shape, skew)
    if skew == plan.shape[2]:
        return raster
    return _cheapest(plan, skew)


def _cheapest(plan: P.Plan, skew: int) -> R.Order:
    """The cheapest order from the least skew, which has the fewest steps, to raster order, whose rows are batches.

    A little more than the least skew leaves what looks sideways some time to gather, so costs fall, then rise.
    """
    dependence, width = R.Dependence(plan), plan.shape[2]
    skews = [skew, *itertools.takewhile(lambda s: s < width, (skew + 2**i for i in itertools.count()))]
    raster = R.raster(plan.shape)
    found, last = [(_IN_ROWS * S.cost(dependence, raster), raster)], math.inf
    for order in (R.wavefront(plan.shape, s) for s in skews):
        cost = S.cost(dependence, order)
        found.append((cost, order))
        if cost > last:
            break
        last = cost
    return min(found, key=lambda pair: pair[0])[1]


@dataclass(frozen=True)
class Limit:
    """The least skew of a wavefront, and why it is no smaller: the distribution of pixel `of`, (y, x), depends on pixel
    `on`, which a wavefront of one less draws with it, or later. None where the skew is 1."""

    skew: int
    of: tuple[int, int] | None = None
    on: tuple[int, int] | None = None


def limit(plan: P.Plan) -> Limit:
    """Find the least skew, and the first pixel that allows no smaller one. Raises `CausalityError`."""
    skew = find_skew(plan)
    if skew == 1:
        return Limit(skew)
    steps = R.wavefront(plan.shape, skew - 1).steps
    ready = R.Dependence(plan).readiness(R.wavefront(plan.shape, skew - 1))
    late = np.zeros(plan.shape, bool)
    for op, when in zip(plan.ops, ready, strict=True):
        if isinstance(op, P.HeadOp):
            late[op.colour] |= when > steps[op.colour]
    y, x = np.argwhere(late.any(axis=0))[0].tolist()
    of = [(c, y, x) for c in range(plan.shape[0])]
    too_late = [seen & (steps >= steps[at]) for at, seen in zip(of, seen_by(plan, of), strict=True)]
    v, u = np.argwhere(np.logical_or.reduce(too_late).any(axis=0))[-1].tolist()
    return Limit(skew, (y, x), (v, u))
