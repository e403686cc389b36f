"""Schedule: which positions of which op run at which step. Pure numpy; knows no ATen and no hardware.

An *order* gives each colour c of each pixel (y, x) the step t at which it is drawn. The *readiness* of an element
is one more than the largest t among the sub-pixels that it depends on, 0 if there are none. It propagates by one
rule: an output is ready when the last input that reaches it is. From it follow the causality check, the skew of the
wavefront, and the step at which each element runs.

Elements run lazily. An element is due at the step of the first distribution that depends on it. When some element of
an op is due, all elements of the op whose inputs have been computed run with it; an element waits for no more than
that, and pulls nothing ahead of its time. So a vertical stack runs once a row, a strided layer once a row of blocks.

Invariants, asserted by `Schedule.verify`: an element runs once or, if nothing reads it, never; not before it is
ready, and not after anything that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from . import passes
from .links import Link, all_links, propagate
from .plan import AttendOp, ConditionOp, ConstantOp, ConvOp, HeadOp, InputOp, MapOp, Plan, Read

NEVER = np.iinfo(np.int32).max
kFetch = 4  # multiply-adds that take as long as fetching a weight from the second or third level cache
kLaunch = 5000  # multiply-adds that take as long as starting an op


class CausalityError(ValueError):
    """The distribution of some pixel depends on that pixel or on later ones."""


@dataclass(frozen=True)
class Leak:
    """The distribution of sub-pixel `of` depends on sub-pixel `on`, (colour, y, x) each, which is not drawn before it.

    modules: those that the leak passes through, or the one that it is in. tap: (dy, dx) of that module which reads too
    early; None where several modules leak, or attention does. reads: the name of what is read too early. alike: how
    many modules of other numbers leak likewise. shifted: no distribution depends on more than its own pixel and earlier
    ones.
    """

    of: tuple[int, int, int]
    on: tuple[int, int, int]
    modules: tuple[str, ...]
    tap: tuple[int, int] | None = None
    reads: str = ""
    alike: int = 0
    shifted: bool = False

    @property
    def place(self) -> str:
        """A sentence that names the module."""
        if self.shifted:
            return f"{self._place} {_SHIFTED}"
        return self._place

    @property
    def _place(self) -> str:
        if not self.reads:
            names = ", ".join(map(repr, self.modules))
            return f"The leak passes through modules {names}: are their masks missing?"
        others = f", and likewise in {self.alike} like it" if self.alike else ""
        where = f"The leak is in module {self.modules[0]!r}{others}: its"
        if self.tap is None:
            return (
                f"{where} attention reads {self.reads!r} at positions that are not drawn yet; is its mask missing, or "
                "does it leave no position at all to some query?"
            )
        dy, dx = self.tap
        return (
            f"{where} tap at (dy={dy:+d}, dx={dx:+d}) reads {self.reads!r} too early; is its mask missing, or of the "
            "wrong type?"
        )


_SHIFTED = (
    "But no distribution depends on more than its own pixel and those before it: if the model's outputs are of the "
    "next pixel, shift its input in to_input=, or its output in output=."
)


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


class _Dependence:
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


def check_causal(plan: Plan, order: Order) -> None:
    """Raise `CausalityError`, naming the module, the tap and the first pixel, if the plan is not causal."""
    leak = find_leak(plan, order)
    if leak is not None:
        raise CausalityError(
            f"[compile] the model is not causal: the distribution of {_pixel(plan, *leak.of)} depends on "
            f"{_pixel(plan, *leak.on)}, which is not drawn before it. {leak.place}"
        )


def find_leak(plan: Plan, order: Order, until: np.ndarray | None = None) -> Leak | None:
    """The first leak, if the plan is not causal.

    until: int32 (C, H, W), the step by which the distribution of each sub-pixel is needed, if not the order's own.
    """
    until = order.steps if until is None else until
    ready = _Dependence(plan).readiness(order)
    for op, r in zip(plan.ops, ready, strict=True):
        if isinstance(op, HeadOp) and (r > until[op.colour]).any():
            break
    else:
        return None
    y, x = np.argwhere(r > until[op.colour])[0].tolist()
    c, v, u = np.argwhere(order.steps == r[y, x] - 1)[0].tolist()
    return _blame(plan, order, until, (op.colour, y, x), (c, v, u))


def _pixel(plan: Plan, colour: int, y: int, x: int) -> str:
    return f"pixel (y={y}, x={x})" if plan.shape[0] == 1 else f"pixel (y={y}, x={x}, colour={colour})"


def _blame(
    plan: Plan, order: Order, until: np.ndarray, of: tuple[int, int, int], on: tuple[int, int, int]
) -> Leak:
    """Say which module leaks.

    A read lies on a leaking path where what it reads is ready later than the earliest distribution that it reaches.
    Such paths lead through innocent modules too. The culprit is the module without whose leaking reads the model is
    causal, and still sees as much as it may: without those of an innocent module it would see less. Where the
    distributions alone do not tell, it is the one that reads the image itself (a mask of type B for one of type A),
    or else attends or recurs, or else the one that leaves the most to be seen inside, of use to some distribution.
    """
    finer = passes.split_by_readers(plan)
    dependence = _Dependence(finer)
    ready, due = dependence.readiness(order), dependence.deadlines(until)
    of_map = on_maps(finer, ready)
    images = {op.out for op in finer.ops if isinstance(op, InputOp)}
    leaks: dict[str, list[tuple[int, Read]]] = {}
    for i, op in enumerate(finer.ops):
        for link in dependence.links[i]:
            if not isinstance(op, HeadOp) and _exceeds(link, of_map[link.read.map], due[i]):
                leaks.setdefault(op.where, []).append((i, link.read))
    suspects: dict[tuple[str, ...], list[tuple[int, Read]]] = {
        (where,): reads for where, reads in leaks.items()
    }
    alike: dict[str, list[str]] = {}
    for where in leaks:
        alike.setdefault(re.sub(r"\d+", "#", where), []).append(where)
    for group in alike.values():
        reads = [leak for where in group for leak in leaks[where]]
        if any(read.keys is not None or i in finer.loops for i, read in reads):
            suspects.setdefault(tuple(group), reads)
    shifted = plan.shape[0] == 1 and all(
        (r <= until[op.colour] + 1).all()
        for op, r in zip(finer.ops, ready, strict=True)
        if isinstance(op, HeadOp)
    )
    best: tuple[str, ...] = ()
    best_rank = (-1, False, False, False, False, -1)
    for names, reads in suspects.items():
        cut = {i: due[i] for i, _ in reads}
        mended = dependence.readiness(order, cut)
        heads = [
            (r, until[op.colour]) for op, r in zip(finer.ops, mended, strict=True) if isinstance(op, HeadOp)
        ]
        if all((r <= t).all() for r, t in heads):
            alone = len(names) == 1
            mixes = any(isinstance(finer.ops[i], ConvOp | AttendOp) for i, _ in reads)
            first = alone and any(read.map in images for _, read in reads)
            attends = any(read.keys is not None or i in finer.loops for i, read in reads)
            used = (d != NEVER for d in dependence.deadlines(until, cut, mended))
            inside = _total(np.where(u, r, 0) for r, u in zip(mended, used, strict=True))
            rank = (_total(r for r, _ in heads), mixes, first, attends, alone, inside)
            if rank > best_rank:
                best, best_rank = names, rank
    shifted = shifted and (not best_rank[2] or best_rank[3])
    if not best:
        return Leak(of, on, tuple(leaks), shifted=shifted)
    _, read = max(
        leaks[best[0]], key=lambda leak: (leak[1].keys is not None, leak[1].dy, leak[1].dx, leak[1].map)
    )
    tap = None if read.keys is not None else (read.dy, read.dx)
    return Leak(of, on, best[:1], tap, finer.maps[read.map].name, len(best) - 1, shifted)


def _exceeds(link: Link, values: np.ndarray, limits: np.ndarray) -> bool:
    """Whether a value of the map is larger than the limit of an op's position that reads it."""
    found = np.zeros(limits.shape, values.dtype)
    link.pull(np.maximum, values, found)
    return bool((found > limits).any())


def _total(arrays: Iterable[np.ndarray]) -> int:
    return sum(int(a.sum(dtype=np.int64)) for a in arrays)


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
    return [float(ready.mean()) for ready in on_maps(plan, _Dependence(plan).readiness(order))]


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
        return tuple(_weights(self.plan, op) if isinstance(op, ConvOp) else 0 for op in self.plan.ops)

    @property
    def cost(self) -> float:
        """An estimate of one image's time at batch 1, in multiply-adds: for choosing between orders.

        A product of few positions costs what fetching its weights costs, and every launch costs something.
        """
        total = 0.0
        for _, i, positions in self.launches():
            total += self.weights[i] * max(len(positions), kFetch) + kLaunch
        total += sum(self.multiply_adds_of(i) for i, w in enumerate(self.weights) if not w)
        return total

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
                assert not _exceeds(link, steps_of[link.read.map], self.steps[i]), plan.name_of(op)
                assert not _exceeds(link, times_of[link.read.map], before), plan.name_of(op)


def _weights(plan: Plan, op: ConvOp) -> int:
    sources = plan.map_of(op.refs)
    return op.products * sum(int((sources == m).sum()) for _, m in plan.live_taps(op))


def schedule(plan: Plan, order: Order) -> Schedule:
    """Give every element its step, and every map its ring of rows. Raises `CausalityError`."""
    if order.skew is not None:
        check_causal(plan, order)
    dependence = _Dependence(plan)
    steps = _steps(dependence, order)
    times = _times(dependence, steps)
    rings = _rings(plan, *_lifetimes(dependence, times))
    result = Schedule(plan, order, tuple(dependence.readiness(order)), tuple(steps), tuple(times), rings)
    result.verify()
    return result


def _steps(dependence: _Dependence, order: Order) -> list[np.ndarray]:
    """For each op, when its elements run."""
    plan = dependence.plan
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
            steps = _lazy_steps(available, np.maximum(due, 0))
        ran[op.out][plan.written(op)] = steps
        return steps

    return propagate(plan, visit)


def _times(dependence: _Dependence, steps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """int64 per op, the time at which each element runs; -1 where it does not. Elements of one time are a launch.

    Within a step ops run in order, and within a loop first what the others of that step read.
    """
    plan = dependence.plan
    n = len(plan.ops)
    turns = 1 + max(
        (sum(steps[i].size for i in part) for part in plan.parts if part[0] in plan.loops), default=0
    )
    first = {i: part[0] for part in plan.parts for i in part}
    last = {op.out: i for i, op in enumerate(plan.ops) if not isinstance(op, HeadOp)}
    of_map = [np.zeros((m.height, m.width), np.int64) for m in plan.maps]

    def visit(i: int) -> np.ndarray:
        op = plan.ops[i]
        turn = np.where(steps[i] == NEVER, 0, (steps[i].astype(np.int64) * n + first[i]) * turns)
        for link in dependence.links[i] if i in plan.loops else ():
            writer = last[link.read.map]
            if writer >= first[i]:
                link.pull(np.maximum, of_map[link.read.map] + (writer >= i), turn)
        if not isinstance(op, HeadOp):
            of_map[op.out][plan.written(op)] = turn
        return turn

    found = propagate(plan, visit)
    return [np.where(s == NEVER, -1, t * n + i) for i, (s, t) in enumerate(zip(steps, found, strict=True))]


def _lifetimes(
    dependence: _Dependence, times: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each row of each map, the launch times of its first write and of its last use."""
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
    return [f.min(axis=1) for f in first], [a.max(axis=1) for a in last]


def _rings(plan: Plan, first: list[np.ndarray], last: list[np.ndarray]) -> dict[int, Ring]:
    """As few rows per home as never hold two rows that are alive at once in one slot."""
    homes: dict[int, list[int]] = {}
    phases: dict[int, int] = {}
    whole = {plan.maps[read.map].home for op in plan.ops for read in plan.reads(op) if read.flat is not None}
    for op in plan.ops:
        if isinstance(op, InputOp | ConvOp | MapOp | AttendOp):
            home = plan.maps[op.out].home
            homes.setdefault(home, []).append(op.out)
            phases[home] = plan.written(op)[0].step
    rings = {}
    for home, members in homes.items():
        height = plan.maps[members[0]].height
        written = np.min([first[m] for m in members], axis=0)
        read = np.max([last[m] for m in members], axis=0)
        after = np.minimum.accumulate(written[::-1])[::-1]  # first write to this row or any later one
        rows = next((r for r in range(1, height) if (read[:-r] < after[r:]).all()), height)
        rows = height if home in whole else rows  # a flat read goes from row to row
        rows = -(-rows // phases[home]) * phases[home]  # so that a phase of the map is a ring, too
        channels = max(plan.maps[m].home_channel + plan.maps[m].channels for m in members)
        rings[home] = Ring(
            home, plan.maps[members[0]].width, channels, rows, int(written.min()), int(read.max())
        )
    return rings
