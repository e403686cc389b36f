"""Links: which positions of a map the positions of an op read.

Whatever propagates through a plan, forward (readiness) or backward (deadlines, lifetimes, receptive fields), is pulled
from the maps to the ops that read them, or pushed the other way, along links.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np

from .plan import Keys, Op, Plan, Read

# A value per position of the map, and a limit per position of the op: reads of larger values do not count.
Cut = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Positions `here` of the op read positions `there` of the map, one each; of both in raster order if `flat`."""

    read: Read
    here: tuple[slice, slice]
    there: tuple[slice, slice]
    flat: bool = False

    def pull(
        self, combine: np.ufunc, source: np.ndarray, into: np.ndarray, limit: np.ndarray | None = None
    ) -> None:
        """Combine what is read with `into`, which has an entry per position of the op.

        limit: likewise; what is larger counts as 0.
        """
        if self.flat:
            source, into = source.reshape(1, -1), into.reshape(1, -1)
        found = source[self.there]
        if limit is not None:
            found = np.where(found > limit.reshape(into.shape)[self.here], 0, found)
        into[self.here] = combine(into[self.here], found)

    def push(self, combine: np.ufunc, source: np.ndarray, into: np.ndarray, cut: Cut | None = None) -> None:
        """Combine the op's values with `into`, which has an entry per position of the map."""
        if self.flat:
            source, into = source.reshape(1, -1), into.reshape(1, -1)
        pushed = combine(into[self.there], source[self.here])
        if cut is not None:
            values, limit = (a.reshape(1, -1) for a in cut) if self.flat else cut
            pushed = np.where(values[self.there] > limit[self.here], into[self.there], pushed)
        into[self.there] = pushed


@dataclass(frozen=True, eq=False)
class Attention:
    """Every position of the op reads the positions of the map, a sequence, that `keys` says."""

    read: Read
    keys: Keys

    def pull(
        self, combine: np.ufunc, source: np.ndarray, into: np.ndarray, limit: np.ndarray | None = None
    ) -> None:
        """As `Boxes.pull`."""
        keys, source, into = self.keys, source.reshape(-1), into.reshape(-1)
        if limit is not None:
            for q, most in enumerate(limit.reshape(-1)):
                for start, end in keys.runs(q):
                    found = source[start:end]
                    into[q] = combine.reduce(found[found <= most], initial=into[q])
            return
        if not len(keys.start):
            return
        ends = np.stack([keys.start, keys.end], axis=1).reshape(-1)
        of_runs = combine.reduceat(np.append(source, source[:1]), ends)[
            ::2
        ]  # every other: from a start to its end
        some = keys.first[:-1] < keys.first[1:]
        into[some] = combine(into[some], combine.reduceat(of_runs, keys.first[:-1][some]))

    def push(self, combine: np.ufunc, source: np.ndarray, into: np.ndarray, cut: Cut | None = None) -> None:
        """As `Boxes.push`."""
        source, into = source.reshape(-1), into.reshape(-1)
        query = np.repeat(np.arange(len(source)), np.diff(self.keys.first))
        for q, start, end in zip(
            query.tolist(), self.keys.start.tolist(), self.keys.end.tolist(), strict=True
        ):
            pushed = combine(into[start:end], source[q])
            if cut is not None:
                values, limit = cut[0].reshape(-1), cut[1].reshape(-1)
                pushed = np.where(values[start:end] > limit[q], into[start:end], pushed)
            into[start:end] = pushed


Link = Boxes | Attention


def propagate(plan: Plan, visit: Callable[[int], np.ndarray], *, backward: bool = False) -> list[np.ndarray]:
    """Call `visit` with the index of every op, in order, and return what it returns; the ops of a loop are visited
    until that no longer changes, which takes as many rounds as there are positions in a row of reads."""
    results: dict[int, np.ndarray] = {}
    for part in reversed(plan.parts) if backward else plan.parts:
        in_order = part[::-1] if backward else part
        for i in in_order:
            results[i] = visit(i)
        changed = in_order[0] in plan.loops
        most = sum(results[i].size for i in in_order) + 1
        while changed:
            before = [results[i].copy() for i in in_order]
            for i in in_order:
                results[i] = visit(i)
            changed = not all(np.array_equal(b, results[i]) for b, i in zip(before, in_order, strict=True))
            most -= 1
            assert most, f"{plan.ops[in_order[0]].where} reads what it has yet to write"
    return [results[i] for i in range(len(plan.ops))]


_LINKS: WeakKeyDictionary[Plan, list[list[Link]]] = WeakKeyDictionary()


def all_links(plan: Plan) -> list[list[Link]]:
    """The links of every op of a plan."""
    found = _LINKS.get(plan)
    if found is None:
        found = _LINKS[plan] = [links(plan, op) for op in plan.ops]
    return found


def links(plan: Plan, op: Op) -> list[Link]:
    """One for each of `plan.reads(op)`."""
    found: list[Link] = []
    grid = plan.grid(op)
    for read in plan.reads(op):
        m = plan.maps[read.map]
        if read.keys is not None:
            found.append(Attention(read, read.keys))
        elif read.flat is not None:
            first, step = read.flat
            count = grid[0] * grid[1]
            there = slice(first, first + (count - 1) * step + 1, step)
            found.append(Boxes(read, (slice(0, 1), slice(0, count)), (slice(0, 1), there), flat=True))
        else:
            found.append(Boxes(read, *_overlap((read.dy, read.dx), read.stride, grid, (m.height, m.width))))
    return found


@lru_cache(4096)
def _overlap(
    offsets: tuple[int, int], strides: tuple[int, int], out: tuple[int, int], grid: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The positions of an op whose read falls on the map, and the positions of the map that they read."""
    here, there = [], []
    for size, extent, offset, stride in zip(out, grid, offsets, strides, strict=True):
        first = max(0, -(offset // stride))
        last = min(size - 1, (extent - 1 - offset) // stride)
        count = max(last - first + 1, 0)
        here.append(slice(first, first + count))
        start = first * stride + offset
        there.append(slice(start, start + (count - 1) * stride + 1, stride) if count else slice(0, 0))
    return (here[0], here[1]), (there[0], there[1])
