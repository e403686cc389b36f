"""Causality: whether every distribution is ready when its sub-pixel is drawn, and which module is to blame if not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import passes
from .plan import AttendOp, ConvOp, HeadOp, InputOp, Plan, Read
from .readiness import NEVER, Dependence, Order, exceeds, on_maps, raster, wavefront


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
    ready = Dependence(plan).readiness(order)
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


# Reads, as (op, read) pairs; and the reads of some modules, by their names.
Reads = list[tuple[int, Read]]
Suspects = dict[tuple[str, ...], Reads]


def _blame(
    plan: Plan, order: Order, until: np.ndarray, of: tuple[int, int, int], on: tuple[int, int, int]
) -> Leak:
    """Say which module leaks.

    A read lies on a leaking path where what it reads is ready later than the earliest distribution that it reaches.
    Such paths lead through innocent modules too. The culprit is the module without whose leaking reads the model is
    causal, and still sees as much as it may: without those of an innocent module it would see less.
    """
    trial = _Trial(passes.split_by_readers(plan), order, until)
    suspects = trial.suspects()
    ranks = {
        names: rank for names, reads in suspects.items() if (rank := trial.rank(names, reads)) is not None
    }
    best = max(ranks, key=lambda names: ranks[names], default=None)
    if best is None:
        modules = dict.fromkeys(name for names in suspects for name in names)
        return Leak(of, on, tuple(modules), shifted=trial.shifted)
    _, read = max(
        suspects[best[:1]], key=lambda leak: (leak[1].keys is not None, leak[1].dy, leak[1].dx, leak[1].map)
    )
    tap = None if read.keys is not None else (read.dy, read.dx)
    own = (
        ranks[best].reads_image and not ranks[best].spreads
    )  # then it is a matter of its mask, not of a shift
    name = trial.plan.maps[read.map].name
    return Leak(of, on, best[:1], tap, name, len(best) - 1, trial.shifted and not own)


class _Rank(NamedTuple):
    """What speaks for a culprit, the weightiest first: how much the distributions see without its leaking reads; then
    whether it mixes channels, reads the image itself (a mask of type B for one of type A), attends or recurs, is alone;
    and how much is seen inside that is of use to some distribution."""

    seen: int
    mixes: bool
    reads_image: bool
    spreads: bool
    alone: bool
    inside: int


class _Trial:
    """A plan that leaks, whose channels are told apart by who reads them."""

    def __init__(self, plan: Plan, order: Order, until: np.ndarray):
        self.plan, self.order, self.until = plan, order, until
        self.dependence = Dependence(plan)
        self.ready = self.dependence.readiness(order)
        self.due = self.dependence.deadlines(until)

    def of_heads(self, ready: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each distribution, when it is ready and when it must be."""
        ops = zip(self.plan.ops, ready, strict=True)
        return [(r, self.until[op.colour]) for op, r in ops if isinstance(op, HeadOp)]

    @property
    def shifted(self) -> bool:
        """Whether no distribution depends on more than its own pixel and those before it."""
        grey = self.plan.shape[0] == 1
        return grey and all((r <= t + 1).all() for r, t in self.of_heads(self.ready))

    def spreads(self, reads: Reads) -> bool:
        """Whether some read attends or recurs."""
        return any(read.keys is not None or i in self.plan.loops for i, read in reads)

    def suspects(self) -> Suspects:
        """The modules with leaking reads; and, since a mistake may be made in each of several attentions or recurrences
        alike, those whose names differ in numbers only."""
        of_map = on_maps(self.plan, self.ready)
        leaks: dict[str, Reads] = {}
        for i, op in enumerate(self.plan.ops):
            for link in self.dependence.links[i]:
                if not isinstance(op, HeadOp) and exceeds(link, of_map[link.read.map], self.due[i]):
                    leaks.setdefault(op.where, []).append((i, link.read))
        found: Suspects = {(name,): reads for name, reads in leaks.items()}
        groups: dict[str, list[str]] = {}
        for name in leaks:
            groups.setdefault(re.sub(r"\d+", "#", name), []).append(name)
        for names in groups.values():
            reads = [leak for name in names for leak in leaks[name]]
            if self.spreads(reads):
                found.setdefault(tuple(names), reads)
        return found

    def rank(self, names: tuple[str, ...], reads: Reads) -> _Rank | None:
        """None if the model leaks without these reads, too."""
        cut = {i: self.due[i] for i, _ in reads}
        mended = self.dependence.readiness(self.order, cut)
        heads = self.of_heads(mended)
        if not all((r <= t).all() for r, t in heads):
            return None
        images = {op.out for op in self.plan.ops if isinstance(op, InputOp)}
        used = (due != NEVER for due in self.dependence.deadlines(self.until, cut, mended))
        return _Rank(
            seen=_total(r for r, _ in heads),
            mixes=any(isinstance(self.plan.ops[i], ConvOp | AttendOp) for i, _ in reads),
            reads_image=len(names) == 1 and any(read.map in images for _, read in reads),
            spreads=self.spreads(reads),
            alone=len(names) == 1,
            inside=_total(np.where(u, r, 0) for r, u in zip(mended, used, strict=True)),
        )


def _total(arrays: Iterable[np.ndarray]) -> int:
    return sum(int(a.sum(dtype=np.int64)) for a in arrays)


def find_skew(plan: Plan) -> int:
    """The smallest skew for which the plan is causal; the image's width (raster order) if there is no smaller.

    Dependence on the row above at dx columns to the right needs a skew above dx, so causality is monotone in it.
    Raises `CausalityError` if even raster order is not causal.
    """
    check_causal(plan, raster(plan.shape))
    dependence = Dependence(plan)
    low, high = 1, plan.shape[2]
    while low < high:
        middle = (low + high) // 2
        if dependence.is_causal(wavefront(plan.shape, middle)):
            high = middle
        else:
            low = middle + 1
    return high
