"""Program: a schedule as flat int32 words and a table of float32 data, ready to cross into a runtime.

`Program.verify` decodes what `assemble` encoded. The format is that of words.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .plan import (
    WHOLE,
    ZERO,
    AttendOp,
    ConditionOp,
    ConstantOp,
    ConvOp,
    HeadOp,
    InputOp,
    Instruction,
    MapOp,
    stride_of,
)
from .schedule import Ring, Schedule
from .words import FUNCTIONS, OPS, Buffer, C, Decoded, decode

_ALIGN = 16  # floats: a cache line


@dataclass(frozen=True, eq=False)
class Program:
    """What a runtime runs. `words`: int32; `data`: float32."""

    words: np.ndarray
    data: np.ndarray
    shape: tuple[int, int, int]
    levels: int
    steps: int
    arena_floats: int
    condition_floats: int
    condition_offsets: Mapping[int, int]  # of each condition that is read, by key
    names: tuple[str, ...]  # of the ops, by the modules that they belong to

    @cached_property
    def decoded(self) -> Decoded:
        return decode(self.words)

    def verify(self) -> None:
        d = self.decoded
        assert (d.colours, d.height, d.width) == self.shape
        assert d.levels == self.levels
        assert d.arena_floats == self.arena_floats
        for launch in d.launches:
            assert launch is None or 0 <= launch[0] < len(d.ops)

    def __str__(self) -> str:
        d = self.decoded
        lines = [f"{len(self.words)} words, {len(self.data)} floats of data"]
        lines += [f"buffer {i:3}: {b}" for i, b in enumerate(d.buffers)]
        lines += [f"op {i:3}: {op}" for i, op in enumerate(d.ops)]
        return "\n".join(lines)


# --- assemble ---------------------------------------------------------------------------------------------------


class _Data:
    """The table of floats, as it grows."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.size = 0

    def add(self, values: np.ndarray) -> int:
        """Append; returns the offset, a multiple of a cache line."""
        offset = self.size
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        padding = -flat.size % _ALIGN
        self.parts += [flat, np.zeros(padding, np.float32)]
        self.size += flat.size + padding
        return offset


def allocate(rings: Sequence[Ring]) -> tuple[dict[int, int], int]:
    """An offset for each ring, so that those in use at the same time do not overlap; and the floats needed."""
    placed: list[tuple[int, int, Ring]] = []
    offsets: dict[int, int] = {}
    for ring in sorted(rings, key=lambda r: -r.floats):
        size = -(-ring.floats // _ALIGN) * _ALIGN
        at = 0
        for start, end, other in sorted(placed, key=lambda p: p[0]):
            if other.first <= ring.last and ring.first <= other.last and start < at + size and at < end:
                at = end
        placed.append((at, at + size, ring))
        offsets[ring.home] = at
    return offsets, max((end for _, end, _ in placed), default=0)


def followers(schedule: Schedule) -> dict[int, int]:
    """Convolutions, by index, and the map that is computed with each: always at its positions, and from it alone.

    No other op runs between the two. What only the map writes may lie where nothing reads while the convolution runs.
    """
    plan, found = schedule.plan, {}
    of_map = {op.out: i for i, op in enumerate(plan.ops) if isinstance(op, ConvOp)}
    times = [np.unique(t[t >= 0]) for t in schedule.times]
    run = [t for t, op in zip(times, plan.ops, strict=True) if not isinstance(op, ConstantOp | ConditionOp)]
    turns = np.sort(np.concatenate(run))
    for j, op in enumerate(plan.ops):
        loads = [ins for ins in op.code if ins.fn == "load"] if isinstance(op, MapOp) else []
        sources = {int(m) for ins in loads for m in np.unique(plan.map_of(ins.refs))}
        i = of_map.get(sources.pop(), -1) if len(sources) == 1 else -1
        if i < 0 or i in found or i in plan.loops or j in plan.loops:
            continue
        conv = plan.ops[i]
        assert isinstance(op, MapOp)
        assert isinstance(conv, ConvOp)
        alike = all(
            ins.offset == (0, 0) and ins.flat is None and np.array_equal(ins.refs, plan.maps[conv.out].refs)
            for ins in loads
        )
        read = {plan.maps[r.map].home for r in plan.reads(conv)}
        if (
            alike
            and op.code[-1].fn != "load"
            and op.phase == conv.phase == WHOLE
            and plan.maps[op.out].home not in read | {plan.maps[conv.out].home}
            and np.array_equal(schedule.steps[i], schedule.steps[j])
            and np.array_equal(np.searchsorted(turns, times[i]) + 1, np.searchsorted(turns, times[j]))
        ):
            found[i] = j
    return found


class _Assembler:
    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.plan = schedule.plan
        self.followers = followers(schedule)
        self.data = _Data()
        self.buffers: list[Buffer] = []
        self.place: dict[int, tuple[int, int]] = {}  # map -> (buffer, first channel)
        self.condition_offsets: dict[int, int] = {}
        self.condition_floats = 0
        self.arena_floats = 0

    def place_maps(self) -> None:
        plan = self.plan
        offsets, self.arena_floats = allocate(list(self.rings().values()))
        by_home: dict[int, int] = {}
        for op in plan.ops:
            if isinstance(op, HeadOp):
                continue
            m = plan.maps[op.out]
            if isinstance(op, ConstantOp):
                self.place[op.out] = (
                    self.fixed("data", self.data.add(op.values), op.values.shape[:2], op.out),
                    0,
                )
            elif isinstance(op, ConditionOp):
                self.condition_offsets[op.key] = self.condition_floats
                self.place[op.out] = (self.fixed("condition", self.condition_floats, op.extent, op.out), 0)
                self.condition_floats += op.extent[0] * op.extent[1] * m.channels
            else:
                if m.home not in by_home:
                    ring = self.schedule.rings[m.home]
                    by_home[m.home] = len(self.buffers)
                    c = ring.channels
                    slots = (ring.rows, ring.columns, ring.columns * c, c)
                    self.buffers.append(Buffer("arena", offsets[m.home], m.height, m.width, c, *slots))
                self.place[op.out] = (by_home[m.home], m.home_channel)

    def rings(self) -> dict[int, Ring]:
        """Those of the schedule; what is written with another op's output is written as early as that."""
        rings = dict(self.schedule.rings)
        for i, j in self.followers.items():
            before, home = (self.plan.maps[self.plan.ops[k].out].home for k in (i, j))  # type: ignore[union-attr]
            rings[home] = replace(rings[home], first=min(rings[home].first, rings[before].first))
        return rings

    def fixed(self, space: str, offset: int, extent: tuple[int, ...], out: int) -> int:
        """A buffer of values that do not change; along axes of extent 1 they are the same at every position."""
        m = self.plan.maps[out]
        height, width = extent
        col = 0 if width == 1 else m.channels
        row = 0 if height == 1 else width * m.channels
        self.buffers.append(Buffer(space, offset, m.height, m.width, m.channels, height, width, row, col))
        return len(self.buffers) - 1

    def locate(self, ref: int) -> tuple[int, int]:
        """(buffer, channel) of a channel number."""
        m = int(self.plan.map_of(np.array([ref]))[0])
        buffer, first = self.place[m]
        return buffer, first + ref - self.plan.maps[m].first

    def locate_all(self, refs: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Buffers and channels of channel numbers, which lie in maps `sources`."""
        names = np.unique(sources)
        places = np.array([self.place.get(m, (ZERO, ZERO)) for m in names.tolist()]).reshape(-1, 2)
        firsts = np.array([self.plan.maps[m].first for m in names.tolist()])
        at = np.searchsorted(names, sources)
        return places[at, 0], places[at, 1] + refs - firsts[at]

    def op(self, i: int) -> list[list[int]]:
        """The records of an op, with their lengths filled in; none if it follows another."""
        op = self.plan.ops[i]
        if isinstance(op, ConstantOp | ConditionOp) or i in self.followers.values():
            return []
        if isinstance(op, InputOp):
            buffer, channel = self.place[op.out]
            bodies = [[op.colour, buffer, channel, op.table.shape[1], self.data.add(op.table)]]
            return self.records("input", bodies)
        if isinstance(op, HeadOp):
            assert (np.diff(op.refs) == 1).all(), "plan.split settles the parameters of heads"
            return self.records(op.kind, [[op.colour, *self.locate(int(op.refs[0]))]])
        if isinstance(op, ConvOp):
            follower = self.plan.ops[self.followers[i]] if i in self.followers else None
            assert follower is None or isinstance(follower, MapOp)
            return self.records("conv", [self.conv(op, follower)])
        if isinstance(op, AttendOp):
            return self.records("attend", [self.attend(op)])
        assert isinstance(op, MapOp)
        place = self.phase(op)
        return self.records("map", [self.map(op, part, *place) for part in self.runs(op)])

    def records(self, opcode: str, bodies: Sequence[list[int]]) -> list[list[int]]:
        return [[OPS[opcode], len(body) + 2, *body] for body in bodies]

    def phase(self, op: ConvOp | MapOp) -> tuple[int, int]:
        """Where an op writes: (buffer, first channel). One phase of a map is a buffer of longer strides."""
        buffer, channel = self.place[op.out]
        p_y, p_x, s_y, s_x = op.phase
        if (s_y, s_x) == (1, 1):
            return buffer, channel
        b = self.buffers[buffer]
        height, width = self.plan.grid(op)
        offset = b.offset + p_y * b.row_stride + p_x * b.col_stride
        rows = height if b.rows == b.height else b.rows // s_y
        columns = width if b.columns == b.width else b.columns // s_x
        slots = (rows, columns, b.row_stride * s_y, b.col_stride * s_x)
        self.buffers.append(Buffer(b.space, offset, height, width, b.channels, *slots))
        return len(self.buffers) - 1, channel

    def flat(self, buffer: int, grid: tuple[int, int], first: int, step: int) -> int:
        """The same memory on another grid, as `Instruction.flat` says."""
        b, (height, width) = self.buffers[buffer], grid
        assert b.columns == b.width or b.height == 1
        assert b.height == 1 or b.row_stride == b.width * b.col_stride
        stride = step * b.col_stride
        offset = b.offset + first * b.col_stride
        rows, columns = height, width
        if (b.rows, b.columns) != (b.height, b.width):  # a ring: in turn
            slots = b.rows * b.columns // step
            rows, columns = (1, slots) if height == 1 else (slots // width, width)
            assert first < step
            assert rows * columns * step == b.rows * b.columns
        view = Buffer(b.space, offset, height, width, b.channels, rows, columns, width * stride, stride)
        self.buffers.append(view)
        return len(self.buffers) - 1

    def attend(self, op: AttendOp) -> list[int]:
        refs = (op.query, op.key, op.value)
        assert all((np.diff(r) == 1).all() for r in refs), "plan.split settles what attention reads"
        places = [word for r in refs for word in self.locate(int(r[0]))]
        bias, heads = (ZERO, 0) if op.bias is None else (self.data.add(op.bias), len(op.bias))
        keys = op.keys
        return [
            *self.place[op.out], op.heads, len(op.query) // op.heads, len(op.value) // op.heads, *places,
            bias, heads, len(keys.start), *keys.first.tolist(),
            *np.stack([keys.start, keys.end], axis=1).reshape(-1).tolist(),
        ]  # fmt: skip

    def conv(self, op: ConvOp, follower: MapOp | None) -> list[int]:
        buffer, channel = self.phase(op)
        sources = self.plan.map_of(op.refs)
        buffers, channels_of = self.locate_all(op.refs, sources)
        taps: list[list[int]] = []
        rows: list[np.ndarray] = []
        live = set(self.plan.live_taps(op))
        for t, offset in enumerate(op.offsets):
            kept = np.flatnonzero(np.isin(sources, [m for at, m in live if at == t]))
            b, c = buffers[kept], channels_of[kept]
            starts = np.flatnonzero((np.diff(b, prepend=ZERO) != 0) | (np.diff(c, prepend=ZERO) != 1))
            lengths = np.diff(starts, append=len(kept))
            taps += [
                [*tap, *offset]
                for tap in zip(b[starts].tolist(), c[starts].tolist(), lengths.tolist(), strict=True)
            ]
            rows.append(op.weight[t, kept])
        weight = np.concatenate(rows) if rows else np.zeros((0, op.products), np.float32)
        channels = self.plan.maps[op.out].channels
        code = [self.instruction(ins, channels, self.plan.grid(op)) for ins in op.code]
        if follower is not None:
            code = code or [[FUNCTIONS["product"][0], 0, 0, 0, 0]]
            code = self.followed(code, (buffer, channel), follower)
            buffer, channel = self.phase(follower)
        return [
            buffer, channel, channels, *op.stride, op.products,
            self.data.add(weight), ZERO if op.bias is None else self.data.add(op.bias),
            *(self.locate(int(op.start[0])) if len(op.start) else (ZERO, 0)), len(taps), len(code),
            *(word for tap in taps for word in tap), *(word for ins in code for word in ins),
        ]  # fmt: skip

    def followed(self, code: list[list[int]], place: tuple[int, int], follower: MapOp) -> list[list[int]]:
        """Code whose result is stored at `place`, then that of a map of it."""
        stored = len(code)
        code = [*code, [FUNCTIONS["store"][0], stored - 1, *place, 0]]
        registers: list[int] = []  # of the follower's instructions
        for ins in follower.code:
            if ins.fn == "load":
                registers.append(stored)
                continue
            moved = replace(ins, args=tuple(registers[a] for a in ins.args))
            registers.append(len(code))
            code.append(self.instruction(moved, 0, self.plan.grid(follower)))
        return code

    def map(self, op: MapOp, part: np.ndarray, buffer: int, channel: int) -> list[int]:
        code = [self.instruction(ins.select(part), len(part), self.plan.grid(op)) for ins in op.code]
        head = [buffer, channel + int(part[0]), len(part), 1, 1, 0, 0, ZERO, ZERO, 0, 0, len(code)]
        return head + [word for ins in code for word in ins]

    def runs(self, op: MapOp) -> list[np.ndarray]:
        """Output channels in runs over which every load stays in one map, at one channel or ascending."""
        loads = [ins.refs for ins in op.code if len(ins.refs)]

        def fits(start: int, end: int) -> bool:
            parts = [refs[start:end] for refs in loads]
            sources = [self.plan.map_of(part[[0, -1]]) for part in parts]
            return all(s[0] == s[1] and stride_of(p) is not None for s, p in zip(sources, parts, strict=True))

        found, start, channels = [], 0, self.plan.maps[op.out].channels
        while start < channels:
            end = channels
            while not fits(start, end):
                end = start + max((end - start) // 2, 1)
            while end < channels and fits(start, end + 1):
                end += 1
            found.append(np.arange(start, end))
            start = end
        return found

    def instruction(self, ins: Instruction, channels: int, grid: tuple[int, int]) -> list[int]:
        code, _ = FUNCTIONS[ins.fn]
        if ins.fn == "scalar":
            return [code, int(np.array(ins.value, np.float32).view(np.int32)), 0, 0, 0]
        if ins.fn == "vector":
            return [code, self.data.add(np.asarray(ins.value)), 0, 0, 0]
        if ins.fn in ("load", "product"):
            step = stride_of(ins.refs)
            if ins.fn == "product":
                assert step == 1, "a product is read in order"
                return [code, int(ins.refs[0]), 0, 0, 0]
            assert step is not None, "other loads are split into runs"
            if ins.refs[0] == ZERO:
                return [FUNCTIONS["scalar"][0], 0, 0, 0, 0]
            if step == 0:
                code = FUNCTIONS["splat"][0]
            buffer, channel = self.locate(int(ins.refs[0]))
            if ins.flat is not None:
                buffer = self.flat(buffer, grid, *ins.flat)
            return [code, buffer, channel, *ins.offset]
        return [code, *ins.args, *([0] * (4 - len(ins.args)))]


def progressions(positions: np.ndarray) -> list[list[int]]:
    """Positions (n, 2) as runs y, x, n, dy, dx: rows, and the diagonals of a wavefront."""
    points = positions.tolist()
    runs: list[list[int]] = []
    i = 0
    while i < len(points):
        y, x = points[i]
        if i + 1 == len(points):
            runs.append([y, x, 1, 0, 0])
            break
        dy, dx = points[i + 1][0] - y, points[i + 1][1] - x
        n = 2
        while i + n < len(points) and points[i + n] == [y + n * dy, x + n * dx]:
            n += 1
        if n == 2 and dy and i + 2 < len(points):  # a lone step to the next row is seldom a run
            n, dy, dx = 1, 0, 0
        runs.append([y, x, n, dy, dx])
        i += n
    return runs


def _launches(schedule: Schedule, of_op: Sequence[range]) -> tuple[np.ndarray, int]:
    """The words of the launches, and how many steps they are. `of_op`: the records of each op."""
    launches: list[int] = []
    steps = 0
    found = list(schedule.launches())
    for (step, i, positions), following in zip(found, [*found[1:], None], strict=True):
        if len(positions) == 1:
            words = [1, *positions[0].tolist(), 1, 0, 0]
        else:
            runs = progressions(positions)
            words = [len(runs), *(word for run in runs for word in run)]
        for record in of_op[i]:
            launches.append(record)
            launches += words
        # A step is also where progress is told and Ctrl-C is heard: where images are known, after every op.
        if following is None or following[0] != step or schedule.order.skew is None:
            launches += [C["kStepMark"], 0]
            steps += 1
    return np.array(launches, np.int32), steps


def assemble(schedule: Schedule) -> Program:
    """Encode a schedule."""
    plan = schedule.plan
    a = _Assembler(schedule)
    a.place_maps()
    records: list[list[int]] = []
    names: list[str] = []
    of_op: list[range] = []
    for i, op in enumerate(plan.ops):
        first = len(records)
        records += a.op(i)
        of_op.append(range(first, len(records)))
        names += [op.where if isinstance(op, ConvOp | MapOp) else plan.name_of(op)] * len(of_op[-1])
    if "launches" not in schedule.encoded:
        schedule.encoded["launches"] = _launches(schedule, of_op)
    launches, steps = schedule.encoded["launches"]
    buffers = [word for b in a.buffers for word in b.words]
    ops = [word for record in records for word in record]
    header = [
        C["kMagic"], C["kVersion"], C["kHeaderWords"] + len(buffers) + len(ops) + len(launches),
        *plan.shape, plan.levels, a.arena_floats, a.condition_floats,
        len(a.buffers), len(records), steps, len(launches),
    ]  # fmt: skip
    assert len(header) == C["kHeaderWords"]
    data = np.concatenate(a.data.parts) if a.data.parts else np.zeros(0, np.float32)
    if max(data.size, a.arena_floats, a.condition_floats) >= 2**31:
        raise ValueError(
            f"[compile] the program needs {max(data.size, a.arena_floats) * 4 / 1e9:.1f} GB in one table; "
            "at most 8.6 GB are supported"
        )
    return Program(
        np.concatenate([np.array(header + buffers + ops, np.int32), launches]),
        data,
        plan.shape,
        plan.levels,
        steps,
        a.arena_floats,
        a.condition_floats,
        a.condition_offsets,
        tuple(names),
    )
