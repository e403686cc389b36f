"""Schedule: which positions of which op run at which step. Pure numpy; knows no ATen and no hardware.

An *order* gives each colour c of each pixel (y, x) the step t at which it is drawn. The *readiness* of an element
is one more than the largest t among the sub-pixels that it depends on, 0 if there are none. It propagates by one
rule: an output is ready when the last input that reaches it is. From it follow the causality check, the skew of the
wavefront, and the step at which each element runs.

Elements run lazily: when some element of an op falls due (something that reads it runs), all elements of the op that
are ready run. That takes the fewest launches possible, and makes each launch as large as it can be.

Invariants, asserted by `Schedule.verify`: an element runs once or, if nothing reads it, never; not before it is
ready, and not after anything that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .plan import ConditionOp, ConstantOp, ConvOp, HeadOp, InputOp, MapOp, Op, Plan, Read

NEVER = np.iinfo(np.int32).max


class CausalityError(ValueError):
    """The distribution of some pixel depends on that pixel or on later ones."""


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


# --- readiness --------------------------------------------------------------------------------------------------


def _overlap(read: Read, out: tuple[int, int], grid: tuple[int, int]) -> tuple[tuple[slice, slice], ...]:
    """The positions of an op whose read falls on the map, and the positions of the map that they read."""
    here, there = [], []
    for size, extent, offset, stride in zip(out, grid, (read.dy, read.dx), read.stride, strict=True):
        first = max(0, -(offset // stride))
        last = min(size - 1, (extent - 1 - offset) // stride)
        count = max(last - first + 1, 0)
        here.append(slice(first, first + count))
        start = first * stride + offset
        there.append(slice(start, start + (count - 1) * stride + 1, stride) if count else slice(0, 0))
    return tuple(here), tuple(there)


class _Dependence:
    """The reads of every op of a plan, with the positions that they connect. Independent of the order."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.reads: list[list[tuple[Read, tuple[slice, slice], tuple[slice, slice]]]] = []
        for op in plan.ops:
            found = []
            for read in plan.reads(op):
                source = plan.maps[read.map]
                found.append((read, *_overlap(read, plan.grid(op), (source.height, source.width))))
            self.reads.append(found)

    def readiness(self, order: Order) -> list[np.ndarray]:
        """int32 (height, width) per op: when its inputs are ready."""
        plan = self.plan
        of_map: dict[int, np.ndarray] = {}
        result = []
        for op, reads in zip(plan.ops, self.reads, strict=True):
            ready = np.zeros(plan.grid(op), np.int32)
            if isinstance(op, InputOp):
                ready[:] = order.steps[op.colour] + 1
            for read, here, there in reads:
                np.maximum(ready[here], of_map[read.map][there], out=ready[here])
            if not isinstance(op, HeadOp):
                of_map[op.out] = ready
            result.append(ready)
        return result

    def deadlines(self, order: Order) -> list[np.ndarray]:
        """int32 (height, width) per op: the earliest step whose distribution depends on the element."""
        plan = self.plan
        of_map = {i: np.full((m.height, m.width), NEVER, np.int32) for i, m in enumerate(plan.maps)}
        result: list[np.ndarray] = []
        for op, reads in zip(reversed(plan.ops), reversed(self.reads), strict=True):
            due = order.steps[op.colour] if isinstance(op, HeadOp) else of_map[op.out]
            for read, here, there in reads:
                np.minimum(of_map[read.map][there], due[here], out=of_map[read.map][there])
            result.append(due)
        return result[::-1]

    def is_causal(self, order: Order) -> bool:
        ready = self.readiness(order)
        heads = ((op, r) for op, r in zip(self.plan.ops, ready, strict=True) if isinstance(op, HeadOp))
        return all((r <= order.steps[op.colour]).all() for op, r in heads)


def check_causal(plan: Plan, order: Order) -> None:
    """Raise `CausalityError`, naming the module, the tap and the first pixel, if the plan is not causal.

    A tap lies on a leaking path where what it reads is ready later than the earliest distribution that it reaches.
    Leaks pass through innocent layers too, but those could lose any one tap that looks forward without mending
    it; the culprit is the op whose leaking taps all look furthest ahead.
    """
    dependence = _Dependence(plan)
    ready = dependence.readiness(order)
    for op, r in zip(plan.ops, ready, strict=True):
        if isinstance(op, HeadOp):
            late = np.argwhere(r > order.steps[op.colour])
            if len(late):
                break
    else:
        return
    of_map = {op.out: r for op, r in zip(plan.ops, ready, strict=True) if not isinstance(op, HeadOp)}
    candidates = []
    for i, (other, due) in enumerate(zip(plan.ops, dependence.deadlines(order), strict=True)):
        if not isinstance(other, ConvOp | MapOp):
            continue
        leaks = [
            (read.dy, read.dx, read.map)
            for read, here, there in dependence.reads[i]
            if (of_map[read.map][there] > due[here]).any()
        ]
        if leaks:
            candidates.append((min(leaks)[:2], -i, other, max(leaks)))
    y, x = late[0].tolist()
    colours = plan.shape[0]
    colour = f", colour {op.colour}" if colours > 1 else ""
    message = f"[compile] the model is not causal: the distribution of pixel (y={y}, x={x}{colour}) depends on "
    seen = int(r[y, x]) - 1
    first = np.argwhere(order.steps == seen)[0].tolist()
    message += f"pixel (y={first[1]}, x={first[2]}" + (f", colour {first[0]})" if colours > 1 else ")")
    message += ", which is not drawn before it"
    if candidates:
        _, _, culprit, (dy, dx, m) = max(candidates, key=lambda c: c[:2])
        message += (
            f". The leak is in module {culprit.where!r}: its tap at (dy={dy:+d}, dx={dx:+d}) reads "
            f"{plan.maps[m].name!r} too early; is its mask missing, or of the wrong type?"
        )
    raise CausalityError(message)


def find_skew(plan: Plan) -> int:
    """The smallest skew for which the plan is causal; the image's width (raster order) if there is no smaller.

    Dependence on the row above at dx columns to the right needs a skew above dx, so causality is monotone in it.
    Raises `CausalityError` if even raster order is not causal.
    """
    check_causal(plan, raster(plan.shape))
    dependence = _Dependence(plan)
    low, high = 1, plan.shape[2]
    while low < high:
        middle = (low + high) // 2
        if dependence.is_causal(wavefront(plan.shape, middle)):
            high = middle
        else:
            low = middle + 1
    return high


def lateness(plan: Plan, order: Order) -> list[float]:
    """For each map, how late it is ready: the mean over positions."""
    ready = _Dependence(plan).readiness(order)
    found = {op.out: float(r.mean()) for op, r in zip(plan.ops, ready, strict=True) if not isinstance(op, HeadOp)}
    return [found[m] for m in range(len(plan.maps))]


# --- steps ------------------------------------------------------------------------------------------------------


def _lazy_steps(ready: np.ndarray, due: np.ndarray) -> np.ndarray:
    """The step at which each element runs, NEVER where it is never due: stab the intervals [ready, due] with as few
    points as possible, each as late as possible."""
    wanted = due != NEVER
    steps = np.full(ready.shape, NEVER, np.int32)
    if not wanted.any():
        return steps
    r, d = ready[wanted], due[wanted]
    dues, group = np.unique(d, return_inverse=True)
    latest = np.zeros(len(dues), np.int64)
    np.maximum.at(latest, group, r)
    stabs, last = [], -1
    for when, ripe in zip(dues.tolist(), latest.tolist(), strict=True):
        if ripe > last:
            last = when
            stabs.append(when)
    points = np.array(stabs, np.int32)
    steps[wanted] = points[np.searchsorted(points, r)]
    return steps


@dataclass(frozen=True, eq=False)
class Ring:
    """How the rows of the maps that share a home are kept: row y in slot y % rows, `nbytes` per image."""

    home: int
    width: int
    channels: int
    rows: int
    first: int  # launch times between which it is in use
    last: int

    @property
    def floats(self) -> int:
        return self.rows * self.width * self.channels


@dataclass(frozen=True, eq=False)
class Schedule:
    """`steps[i]`: int32 (height, width), when each element of op i runs; NEVER where it does not."""

    plan: Plan
    order: Order
    ready: tuple[np.ndarray, ...]
    steps: tuple[np.ndarray, ...]
    rings: dict[int, Ring]  # by home

    @property
    def count(self) -> int:
        """Steps from the first draw to the last."""
        return max(self.order.count, 1)

    @property
    def multiply_adds(self) -> int:
        """Per image, all taps and padding counted."""
        return sum(self.multiply_adds_of(i) for i in range(len(self.plan.ops)))

    def multiply_adds_of(self, i: int) -> int:
        op = self.plan.ops[i]
        if not isinstance(op, ConvOp):
            return 0
        return int((self.steps[i] != NEVER).sum()) * op.products * depth(self.plan, op)

    @property
    def floats(self) -> int:
        return sum(ring.floats for ring in self.rings.values())

    def launches(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(step, op, positions int (n, 2)) in the order in which they run."""
        found = []
        for i, steps in enumerate(self.steps):
            if isinstance(self.plan.ops[i], ConstantOp | ConditionOp):
                continue
            positions = np.argwhere(steps != NEVER)
            when = steps[steps != NEVER]
            in_order = np.argsort(when, kind="stable")
            when, positions = when[in_order], positions[in_order]
            bounds = np.flatnonzero(np.diff(when, prepend=-1, append=-1))
            found += [(int(when[a]), i, positions[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
        yield from sorted(found, key=lambda launch: launch[:2])

    def verify(self) -> None:
        plan = self.plan
        steps_of = {op.out: s for op, s in zip(plan.ops, self.steps, strict=True) if not isinstance(op, HeadOp)}
        for i, op in enumerate(plan.ops):
            ran = self.steps[i] != NEVER
            assert (self.steps[i][ran] >= self.ready[i][ran]).all(), plan.name_of(op)
            if isinstance(op, HeadOp):
                assert (self.steps[i] == np.maximum(self.order.steps[op.colour], 0)).all()
            for read in plan.reads(op):
                source = plan.maps[read.map]
                here, there = _overlap(read, plan.grid(op), (source.height, source.width))
                assert (steps_of[read.map][there] <= self.steps[i][here]).all(), plan.name_of(op)


def depth(plan: Plan, op: ConvOp) -> int:
    """Multiply-adds per product: the channels behind all live taps."""
    return sum(_tap_channels(plan, op, m) for _, m in plan.live_taps(op))


def _tap_channels(plan: Plan, op: ConvOp, m: int) -> int:
    return int((plan.map_of(op.refs) == m).sum())


def schedule(plan: Plan, order: Order) -> Schedule:
    """Give every element its step, and every map its ring of rows. Raises `CausalityError`."""
    if order.skew is not None:
        check_causal(plan, order)
    dependence = _Dependence(plan)
    ready = dependence.readiness(order)
    due = [np.full((m.height, m.width), NEVER, np.int32) for m in plan.maps]
    steps: list[np.ndarray] = [np.empty(0)] * len(plan.ops)
    count = len(plan.ops)
    last = [np.full(m.height, -1, np.int64) for m in plan.maps]  # launch time of the last read of each row
    first = [np.full(m.height, np.iinfo(np.int64).max, np.int64) for m in plan.maps]
    for i in reversed(range(count)):
        op = plan.ops[i]
        if isinstance(op, HeadOp):
            steps[i] = np.maximum(order.steps[op.colour], 0)
        elif isinstance(op, ConstantOp | ConditionOp):
            steps[i] = np.zeros(plan.grid(op), np.int32)
        else:
            steps[i] = _lazy_steps(ready[i], due[op.out])
            when = np.where(steps[i] == NEVER, np.iinfo(np.int64).max, steps[i].astype(np.int64) * count + i)
            first[op.out] = when.min(axis=1, initial=np.iinfo(np.int64).max)
            ran = np.where(steps[i] == NEVER, -1, when).max(axis=1, initial=-1)
            last[op.out] = np.maximum(last[op.out], ran)
        for read, here, there in dependence.reads[i]:
            np.minimum(due[read.map][there], steps[i][here], out=due[read.map][there])
            rows = np.where(steps[i] == NEVER, -1, steps[i].astype(np.int64) * count + i)[here]
            if rows.size:
                target = last[read.map][there[0]]
                np.maximum(target, rows.max(axis=1), out=target)
    result = Schedule(plan, order, tuple(ready), tuple(steps), _rings(plan, first, last))
    result.verify()
    return result


def _rings(plan: Plan, first: list[np.ndarray], last: list[np.ndarray]) -> dict[int, Ring]:
    """As few rows per home as never hold two rows that are alive at once in one slot."""
    homes: dict[int, list[int]] = {}
    stored = [op.out for op in plan.ops if isinstance(op, InputOp | ConvOp | MapOp)]
    for m in stored:
        homes.setdefault(plan.maps[m].home, []).append(m)
    rings = {}
    for home, members in homes.items():
        height = plan.maps[members[0]].height
        written = np.min([first[m] for m in members], axis=0)
        read = np.max([last[m] for m in members], axis=0)
        after = np.minimum.accumulate(written[::-1])[::-1]  # first write to this row or any later one
        rows = next((r for r in range(1, height) if (read[:-r] < after[r:]).all()), height)
        channels = max(plan.maps[m].home_channel + plan.maps[m].channels for m in members)
        rings[home] = Ring(
            home, plan.maps[members[0]].width, channels, rows, int(written.min()), int(read.max())
        )
    return rings


def describe(op: Op) -> str:
    return type(op).__name__.removesuffix("Op").lower()
