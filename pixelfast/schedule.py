"""Schedule: which positions of which op run at which step. Pure numpy; knows no ATen and no hardware.

Elements run lazily. When some element of an op is due, all elements of the op whose inputs have been computed run with
it; an element waits for no more than that, and pulls nothing ahead of its time. So a vertical stack runs once a row, a
strided layer once a row of blocks.

Invariants, asserted by `Schedule.verify`: an element runs once or, if nothing reads it, never; not before it is
ready, and not after anything that reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from .causality import check_causal
from .links import all_links, propagate
from .plan import AttendOp, ConditionOp, ConstantOp, ConvOp, HeadOp, InputOp, MapOp, Plan
from .readiness import NEVER, Dependence, Order, exceeds, on_maps


def _lazy_steps(ready: np.ndarray, due: np.ndarray) -> np.ndarray:
    """The step at which each element runs, NEVER where it is never due: stab the intervals [ready, due] with as few
    points as possible, each as late as possible."""
    wanted = due != NEVER
    steps = np.full(ready.shape, NEVER, np.int32)
    if not wanted.any():
        return steps
    r, d = ready[wanted], due[wanted].astype(np.int32, copy=False)
    latest = np.full(int(d.max()) + 1, -1, np.int32)  # of the elements due at a step, when the last is ready
    np.maximum.at(latest, d, r.astype(np.int32, copy=False))
    dues = np.flatnonzero(latest >= 0)
    points, last = [], -1
    for when, ripe in zip(dues.tolist(), latest[dues].tolist(), strict=True):
        if ripe > last:
            last = when
            points.append(when)
    following = np.array(points, np.int32)[np.searchsorted(points, np.arange(last + 1))]
    steps[wanted] = following[r]
    return steps


@dataclass(frozen=True, eq=False)
class Ring:
    """How the maps that share a home are kept: position (y, x) in slot (y % rows, x % columns)."""

    home: int
    rows: int
    columns: int
    channels: int
    first: int  # launch times between which it is in use
    last: int

    @property
    def floats(self) -> int:
        return self.rows * self.columns * self.channels


@dataclass(frozen=True, eq=False)
class Schedule:
    """`steps[i]`: int32 (height, width), when each element of op i runs; NEVER where it does not.

    `encoded` is where `program.assemble` keeps what it makes of the launches.
    """

    plan: Plan
    order: Order
    ready: tuple[np.ndarray, ...]
    steps: tuple[np.ndarray, ...]
    times: tuple[np.ndarray, ...]  # see `_times`
    rings: dict[int, Ring]  # by home
    encoded: dict[str, Any] = field(default_factory=dict, repr=False)

    def maker(self) -> Callable[[Plan], Schedule]:
        """Return what gives plans of the same structure the same schedule. It keeps none of the weights."""
        return partial(
            Schedule,
            order=self.order,
            ready=self.ready,
            steps=self.steps,
            times=self.times,
            rings=self.rings,
            encoded=self.encoded,
        )

    @property
    def count(self) -> int:
        """Steps from the first draw to the last."""
        return max(self.order.count, 1)

    @property
    def multiply_adds(self) -> int:
        """Per image, all taps and padding counted."""
        return sum(self.multiply_adds_of(i) for i in range(len(self.plan.ops)))

    def multiply_adds_of(self, i: int) -> int:
        runs, op = self.steps[i] != NEVER, self.plan.ops[i]
        if isinstance(op, AttendOp):
            return int(op.keys.counts[runs[0]].sum()) * (len(op.query) + len(op.value))
        return int(runs.sum()) * self.weights[i]

    @cached_property
    def weights(self) -> tuple[int, ...]:
        """Of each op, the weights behind its live taps: its multiply-adds per position."""
        return tuple(weights_of(self.plan, op) if isinstance(op, ConvOp) else 0 for op in self.plan.ops)

    @property
    def floats(self) -> int:
        return sum(ring.floats for ring in self.rings.values())

    def launches(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(step, op, positions int (n, 2)) in the order in which they run."""
        positions: dict[int, np.ndarray] = {}
        found = [np.zeros((5, 0), np.int64)]  # of each launch: time, step, op, first and last position
        for i, times in enumerate(self.times):
            if isinstance(self.plan.ops[i], ConstantOp | ConditionOp):
                continue
            runs = times >= 0
            when = times[runs]
            in_order = np.argsort(when, kind="stable")
            when, steps = when[in_order], self.steps[i][runs][in_order]
            positions[i] = np.argwhere(runs)[in_order]
            bounds = np.flatnonzero(np.diff(when, prepend=-2, append=-2))
            first = bounds[:-1]
            found.append(np.stack([when[first], steps[first], np.full(len(first), i), first, bounds[1:]]))
        launches = np.concatenate(found, axis=1)
        for step, i, first, end in launches[1:, np.argsort(launches[0], kind="stable")].T.tolist():
            yield step, i, positions[i][first:end]

    def verify(self) -> None:
        plan = self.plan
        steps_of, never = on_maps(plan, self.steps), np.iinfo(np.int64).max
        times_of = on_maps(plan, [np.where(times < 0, never, times) for times in self.times])
        for i, op in enumerate(plan.ops):
            ran = self.steps[i] != NEVER
            assert (self.steps[i][ran] >= self.ready[i][ran]).all(), plan.name_of(op)
            if isinstance(op, HeadOp):
                assert (self.steps[i] == np.maximum(self.order.steps[op.colour], 0)).all()
            for link in all_links(plan)[i]:
                before = np.where(ran, self.times[i] - 1, never)
                assert not exceeds(link, steps_of[link.read.map], self.steps[i]), plan.name_of(op)
                assert not exceeds(link, times_of[link.read.map], before), plan.name_of(op)


def launch_times(dependence: Dependence, order: Order) -> list[np.ndarray]:
    """For each op, when its elements would run: those of one time are a launch; -1 where they do not."""
    return _times(dependence, _steps(dependence, order))


def weights_of(plan: Plan, op: ConvOp) -> int:
    """The weights behind the live taps of an op."""
    sources = plan.map_of(op.refs)
    return op.products * sum(int((sources == m).sum()) for _, m in plan.live_taps(op))


def schedule(plan: Plan, order: Order, *, early: bool = False) -> Schedule:
    """Give every element its step, and every map its ring. Raises `CausalityError`.

    early: what `sharing.share` sums runs a step after what it reads, where it need not wait for that.
    """
    if order.skew is not None:
        check_causal(plan, order)
    dependence = Dependence(plan)
    steps = _steps(dependence, order, early)
    times = _times(dependence, steps)
    rings = _rings(plan, *_lifetimes(dependence, times))
    result = Schedule(plan, order, tuple(dependence.readiness(order)), tuple(steps), tuple(times), rings)
    result.verify()
    return result


def _steps(dependence: Dependence, order: Order, early: bool = False) -> list[np.ndarray]:
    """For each op, when its elements run."""
    plan = dependence.plan
    starts = {int(m) for op in plan.ops if isinstance(op, ConvOp) for m in np.unique(plan.map_of(op.start))}
    ran = [np.zeros((m.height, m.width), np.int32) for m in plan.maps]
    dues = dependence.deadlines(order.steps)

    def visit(i: int) -> np.ndarray:
        op, due = plan.ops[i], dues[i]
        if isinstance(op, HeadOp):
            return np.maximum(order.steps[op.colour], 0)
        available = np.zeros(plan.grid(op), np.int32)
        for link in dependence.links[i]:
            link.pull(np.maximum, ran[link.read.map], available)
        if isinstance(op, InputOp):  # at once, since what it makes available lets others gather
            steps = np.where(due == NEVER, NEVER, np.maximum(order.steps[op.colour] + 1, 0))
        elif isinstance(op, ConstantOp | ConditionOp):
            steps = available
        elif i in plan.loops:  # at once, since no two elements of a row of reads can run together
            steps = np.where(due == NEVER, NEVER, available)
        else:
            due = np.maximum(due, 0)
            if early and op.out in starts:
                available = np.minimum(available + 1, due)
            steps = _lazy_steps(available, due)
        ran[op.out][plan.written(op)] = steps
        return steps

    return propagate(plan, visit)


def _times(dependence: Dependence, steps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """int64 per op, the time at which each element runs; -1 where it does not. Elements of one time are a launch.

    Within a step those ops come first that read nothing of that step, so that they need not wait for each other; then
    all others. Ops run in order, and within a loop first what the others of that step read.
    """
    plan = dependence.plan
    n = len(plan.ops)
    turns = 1 + max(
        (sum(steps[i].size for i in part) for part in plan.parts if part[0] in plan.loops), default=0
    )
    first = {i: part[0] for part in plan.parts for i in part}
    last = {op.out: i for i, op in enumerate(plan.ops) if not isinstance(op, HeadOp)}
    of_map = [np.zeros((m.height, m.width), np.int64) for m in plan.maps]
    late = _in_wait(dependence, steps)

    def visit(i: int) -> np.ndarray:
        op = plan.ops[i]
        phase = 2 * steps[i].astype(np.int64) + late[i]
        turn = np.where(steps[i] == NEVER, 0, (phase * n + first[i]) * turns)
        for link in dependence.links[i] if i in plan.loops else ():
            writer = last[link.read.map]
            if writer >= first[i]:
                link.pull(np.maximum, of_map[link.read.map] + (writer >= i), turn)
        if not isinstance(op, HeadOp):
            of_map[op.out][plan.written(op)] = turn
        return turn

    found = propagate(plan, visit)
    return [np.where(s == NEVER, -1, t * n + i) for i, (s, t) in enumerate(zip(steps, found, strict=True))]


def _in_wait(dependence: Dependence, steps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """bool per op: which elements run with some of their op that read what runs in the same step."""
    plan = dependence.plan
    ran = on_maps(plan, steps)
    found = []
    for i, op in enumerate(plan.ops):
        before = np.full(steps[i].shape, -1, np.int64)
        for link in dependence.links[i]:
            link.pull(np.maximum, np.where(ran[link.read.map] == NEVER, -1, ran[link.read.map]), before)
        waits = (before >= steps[i]) & (steps[i] != NEVER)
        alike = isinstance(op, InputOp) or i in plan.loops
        found.append(
            np.full(waits.shape, not isinstance(op, InputOp)) if alike else np.isin(steps[i], steps[i][waits])
        )
    return found


def _lifetimes(
    dependence: Dependence, times: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each position of each map, the launch times of its first write and of its last use."""
    plan = dependence.plan
    first = [np.full((m.height, m.width), np.iinfo(np.int64).max) for m in plan.maps]
    last = [np.full((m.height, m.width), -1, np.int64) for m in plan.maps]
    for i, op in enumerate(plan.ops):
        when = times[i]
        if not isinstance(op, HeadOp):
            first[op.out][plan.written(op)] = np.where(when >= 0, when, np.iinfo(np.int64).max)
            last[op.out][plan.written(op)] = np.maximum(last[op.out][plan.written(op)], when)
        for link in dependence.links[i]:
            link.push(np.maximum, when, last[link.read.map])
    return first, last


def _slots(first: np.ndarray, last: np.ndarray) -> int:
    """The least n such that i and i + n, i + 2n, ... (along the first axis) are never in use at once."""
    after = np.minimum.accumulate(first[::-1])[::-1]  # first use of this one or any later one
    return next((n for n in range(1, len(first)) if (last[:-n] < after[n:]).all()), len(first))


def _extent(first: np.ndarray, last: np.ndarray, steps: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Rows and columns of slots that suffice: whole rows of them, or fewer columns and perhaps more rows.

    Either all that there are, or multiples of the steps of a phase, so that it is a ring, too. More rows than suffice
    are safe; other columns are another grouping, so that rows are counted for those that are taken.
    """

    def rounded(n: int, axis: int) -> int:
        return min(-(-n // steps[axis]) * steps[axis], first.shape[axis])

    height, width = first.shape
    columns = rounded(_slots(first.T, last.T), 1)
    padding = ((0, 0), (0, -width % columns))
    of_slot = (height, -1, columns)
    rows = _slots(
        np.pad(first, padding, constant_values=np.iinfo(np.int64).max).reshape(of_slot).min(1),
        np.pad(last, padding, constant_values=-1).reshape(of_slot).max(1),
    )
    return min((rounded(_slots(first, last), 0), width), (rounded(rows, 0), columns), key=math.prod)


def _rings(plan: Plan, first: list[np.ndarray], last: list[np.ndarray]) -> dict[int, Ring]:
    """As few slots per home as never hold two positions that are in use at once."""
    homes: dict[int, list[int]] = {}
    phases: dict[int, tuple[int, int]] = {}
    for op in plan.ops:
        if isinstance(op, InputOp | ConvOp | MapOp | AttendOp):
            home = plan.maps[op.out].home
            homes.setdefault(home, []).append(op.out)
            phases[home] = (plan.written(op)[0].step, plan.written(op)[1].step)
    flat = _flat_reads(plan)
    rings = {}
    for home, members in homes.items():
        written = np.min([first[m] for m in members], axis=0)
        read = np.max([last[m] for m in members], axis=0)
        if home in flat:
            rows, columns = _rows_in_turn(written, read, flat[home], phases[home])
        else:
            rows, columns = _extent(written, read, phases[home])
        channels = max(plan.maps[m].home_channel + plan.maps[m].channels for m in members)
        rings[home] = Ring(home, rows, columns, channels, int(written.min()), int(read.max()))
    return rings


def _flat_reads(plan: Plan) -> dict[int, int]:
    """Of homes that are read as a sequence: how many positions, or a multiple, a ring must have; 0 for all of them.

    A flat read goes round the ring as it goes from row to row of its own grid; attention goes from key to key.
    """
    found: dict[int, int] = {}
    for op in plan.ops:
        for read in plan.reads(op):
            home, each = plan.maps[read.map].home, 0
            if read.flat is not None:
                height, width = plan.grid(op)
                first, step = read.flat
                each = 0 if first >= step else step if height == 1 else step * width
            elif read.keys is None:
                continue
            found[home] = math.lcm(found.get(home, 1), each)
    return found


def _rows_in_turn(first: np.ndarray, last: np.ndarray, each: int, steps: tuple[int, int]) -> tuple[int, int]:
    """As `_extent`, but whole rows, or a part of a map of one row: multiples of `each` positions, of 0 all."""
    height, width = first.shape
    if height == 1:
        unit = math.lcm(each, steps[1]) or width
        return 1, min(-(-_slots(first.T, last.T) // unit) * unit, width)
    unit = math.lcm(each // math.gcd(each, width), steps[0]) or height
    return min(-(-_slots(first, last) // unit) * unit, height), width
