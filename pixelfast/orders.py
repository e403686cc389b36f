"""Which order a plan is drawn in, and its schedule there; what was found out for one plan is known of all alike."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import _cpu, passes
from . import plan as P
from . import readiness as R
from . import schedule as S
from ._recent import Recent
from .causality import check_causal, find_skew
from .receptive import seen_by
from .sharing import share

ORDERS = ("auto", "raster", "wavefront")

_LAUNCH = 6000  # multiply-adds that take as long as starting an op

_ORDERS: Recent[R.Order] = Recent(32)
_SCHEDULES: Recent[tuple[list[float], Callable[[P.Plan], S.Schedule]]] = Recent(16)


def schedule_in(plan: P.Plan, order: R.Order, *, early: bool = False) -> S.Schedule:
    """Fuse and schedule; what was found out for another plan of the same structure is used again.

    early: as `alone` of `share`, for hardware on which a turn is long and work beside it costs little.
    """
    key = plan.structure, order.name, order.skew, early
    known = _SCHEDULES.get(key)
    lateness = known[0] if known else R.lateness(plan, order)
    fused = share(passes.fuse(plan, lateness), alone=early)
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
    found, last = [(cost(dependence, raster), raster)], math.inf
    for order in (R.wavefront(plan.shape, s) for s in skews):
        here = cost(dependence, order)
        found.append((here, order))
        if here > last:
            break
        last = here
    return min(found, key=lambda pair: pair[0])[1]


def cost(dependence: R.Dependence, order: R.Order) -> float:
    """An estimate of one image's time at batch 1 on this machine, in multiply-adds: for choosing between orders.

    A product of few positions costs what fetching its weights costs, which depends on how much was read since they were
    last needed, and every launch costs something. Attention costs the same in every order.
    """
    plan = dependence.plan
    found = [np.zeros((4, 0), np.int64)]  # of each launch: time, op, positions, weights
    for i, (op, times) in enumerate(zip(plan.ops, S.launch_times(dependence, order), strict=True)):
        when, positions = np.unique(times[times >= 0], return_counts=True)
        weights = S.weights_of(plan, op) if isinstance(op, P.ConvOp) else 0
        found.append(np.stack([when, np.full(len(when), i), positions, np.full(len(when), weights)]))
    _, ops, positions, weights = (launches := np.concatenate(found, axis=1))[:, np.argsort(launches[0])]
    read = np.cumsum(weights)
    by_op = np.argsort(ops, kind="stable")
    since = np.diff(read[by_op], prepend=0)  # since the last launch of the op, if it has one
    since[np.diff(ops[by_op], prepend=-1) != 0] = read[-1]
    near = np.zeros(len(ops), bool)
    near[by_op] = 4 * since <= _cpu.second_level()
    fetch = np.where(near, _cpu.near_fetch(), _cpu.near_fetch() if near.all() else _cpu.far_fetch())
    return float((weights * np.maximum(positions, fetch)).sum()) + _LAUNCH * len(ops)


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
