"""What a compiled model will do, as numbers and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._table import aligned
from .orders import Limit, limit
from .plan import ConditionOp, ConstantOp, ConvOp, HeadOp, InputOp, MapOp
from .readiness import NEVER, wavefront
from .schedule import Schedule


@dataclass(frozen=True)
class Row:
    """One op. `elements` run per image, in `launches`; bytes are per image for buffers, in all for weights.

    What the op writes is kept in `slots`, (rows, columns): position (y, x) in slot (y % rows, x % columns).
    """

    name: str
    kind: str
    channels: int
    elements: int
    launches: int
    multiply_adds: int
    slots: tuple[int, int]
    buffer_nbytes: int
    weights_nbytes: int


@dataclass(frozen=True)
class Crew:
    """A way to share a batch on a GPU: `teams` of `blocks` blocks, each with `chunk` images at a time, which wait at a
    barrier of the `block`, of a `cluster` or in `memory`. Of `weights_nbytes`, `resident_nbytes` are in a team's shared
    memory. `spread`: whether early halves of convolutions run here and there in a step, rather than at its start.
    `cycles`: an estimate; the least is chosen."""

    teams: int
    blocks: int
    chunk: int
    spread: bool
    barrier: str
    resident_nbytes: int
    weights_nbytes: int
    cycles: float
    nbytes: int


@dataclass(frozen=True)
class Explanation:
    """`print` it. Multiply-adds and elements are per image; buffers are per image at work.

    limit: the least skew of a wavefront, and which pixel's dependence allows no smaller one. crews: on a GPU, how a
    batch of `images` may be shared, and the bytes that weights, other data and launches take there besides.
    """

    shape: tuple[int, int, int]
    levels: int
    order: str
    skew: int | None
    steps: int
    limit: Limit
    rows: tuple[Row, ...]
    multiply_adds: int
    launches: int
    buffer_nbytes: int
    weights_nbytes: int
    images: int = 0
    crews: tuple[Crew, ...] = ()
    held_nbytes: int = 0

    @property
    def crew(self) -> Crew | None:
        """The one that is chosen; None where there is no GPU to share."""
        return min(self.crews, key=lambda c: c.cycles, default=None)

    @property
    def why(self) -> str:
        """Why it takes no fewer steps: a sentence, or nothing if a wavefront of skew 1 was chosen."""
        _, height, width = self.shape
        least = self.limit.skew
        if height == 1 or width == 1:
            return f"no wavefront: the image is one {'row' if height == 1 else 'column'}"
        because = ""
        if self.limit.of is not None and self.limit.on is not None:
            (y, x), (v, u) = self.limit.of, self.limit.on
            because = f": pixel (y={y}, x={x}) depends on pixel (y={v}, x={u})"
        if least == width:
            return f"no wavefront{because}, the end of the row above, so rows cannot overlap"
        if self.skew == least:
            return f"no smaller skew{because}" if because else ""
        steps = wavefront(self.shape, least).count
        return f"the least skew of a wavefront is {least} ({steps:,} steps){because}"

    def __str__(self) -> str:
        colours, height, width = self.shape
        skew = f", skew {self.skew}" if self.order == "wavefront" else ""
        title = (
            f"{colours} x {height} x {width}, {self.levels} levels; {self.order} order{skew}: {self.steps:,} steps "
            f"in place of {colours * height * width:,}"
        )
        header = (
            "op",
            "kind",
            "channels",
            "elements",
            "launches",
            "multiply-adds",
            "slots",
            "buffer B",
            "weights B",
        )
        lines: list[tuple[str, ...]] = [header]
        for r in self.rows:
            numbers = (
                r.channels,
                r.elements,
                r.launches,
                r.multiply_adds,
                "x".join(map(str, r.slots)) if any(r.slots) else "",
                r.buffer_nbytes,
                r.weights_nbytes,
            )
            lines.append((r.name, r.kind, *(n if isinstance(n, str) else f"{n:,}" for n in numbers)))
        totals = (self.launches, self.multiply_adds, "", self.buffer_nbytes, self.weights_nbytes)
        lines.append(("in all", "", "", "", *(f"{n:,}" if n != "" else "" for n in totals)))
        text = aligned(lines, left=2)
        rule = "-" * max(map(len, text))
        head = [title, self.why] if self.why else [title]
        return "\n".join([*head, "", text[0], rule, *text[1:-1], rule, text[-1], *self._shares()])

    def _shares(self) -> list[str]:
        """The table of crews."""
        if not self.crews:
            return []
        lines: list[tuple[str, ...]] = [
            (
                "teams",
                "blocks",
                "images each",
                "barrier",
                "early halves",
                "resident weights B",
                "cycles, estimated",
                "bytes",
                "",
            )
        ]
        for c in self.crews:
            resident = f"{c.resident_nbytes:,} of {c.weights_nbytes:,}"
            early = "spread" if c.spread else "first"
            numbers = (c.teams, c.blocks, c.chunk, c.barrier, early, resident)
            costs = (f"{c.cycles:,.0f}", f"{c.nbytes:,}")
            lines.append((*map(str, numbers), *costs, "<- chosen" if c is self.crew else ""))
        held = f"weights, other data and launches take {self.held_nbytes:,} bytes"
        return ["", f"{self.images} images shared; {held}", *aligned(lines, left=0)]


def explain(
    schedule: Schedule,
    buffer_nbytes: int,
    images: int = 0,
    crews: Sequence[Mapping[str, Any]] = (),
    held_nbytes: int = 0,
) -> Explanation:
    """Summarise a schedule. `buffer_nbytes` is what the program allocates per image, rings sharing memory; `crews`: of
    a device, for so many images, where the program takes `held_nbytes`."""
    plan = schedule.plan
    launches = [0] * len(plan.ops)
    for _, i, _ in schedule.launches():
        launches[i] += 1
    rows = []
    seen: set[int] = set()
    for i, op in enumerate(plan.ops):
        weights, ring, channels, kind = 0, None, 0, ""
        if isinstance(op, HeadOp):
            kind, channels = op.kind, len(op.refs)
        else:
            kind, channels = type(op).__name__.removesuffix("Op").lower(), plan.maps[op.out].channels
            home = plan.maps[op.out].home
            if home in schedule.rings and home not in seen:
                ring = schedule.rings[home]
                seen.add(home)
        if isinstance(op, ConvOp):
            weights = 4 * (schedule.weights[i] + (0 if op.bias is None else op.products))
        elif isinstance(op, InputOp):
            weights = op.table.nbytes
        elif isinstance(op, ConstantOp):
            weights = op.values.nbytes
        fixed = isinstance(op, ConstantOp | ConditionOp)
        rows.append(
            Row(
                name=op.where if isinstance(op, ConvOp | MapOp) else plan.name_of(op),
                kind=kind,
                channels=channels,
                elements=0 if fixed else int((schedule.steps[i] != NEVER).sum()),
                launches=launches[i],
                multiply_adds=schedule.multiply_adds_of(i),
                slots=(ring.rows, ring.columns) if ring else (0, 0),
                buffer_nbytes=4 * ring.floats if ring else 0,
                weights_nbytes=weights,
            )
        )
    order = schedule.order
    return Explanation(
        shape=plan.shape,
        levels=plan.levels,
        order=order.name,
        skew=order.skew,
        steps=schedule.count,
        limit=limit(plan),
        rows=tuple(rows),
        multiply_adds=schedule.multiply_adds,
        launches=sum(launches),
        buffer_nbytes=buffer_nbytes,
        weights_nbytes=sum(r.weights_nbytes for r in rows),
        images=images,
        crews=tuple(Crew(**crew) for crew in crews),
        held_nbytes=held_nbytes,
    )
