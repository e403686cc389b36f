"""Plan: a model as a handful of position-level ops over feature maps.

A *map* is a grid of positions with some channels. Channels of all maps are numbered through the plan, so that
"channels 3 to 7 of this, then channel 0 of that" is an integer array, and every change of layout (slices,
concatenations, permutations, reshapes of the channel axes) is indexing, done while lowering, and costs nothing
at run time. `ZERO` stands for a channel that is always zero.

Ops write one map each, once, and stand in topological order:

    InputOp      level of one colour of a pixel -> row of a table
    ConstantOp   values that do not depend on the image, known at compile time
    ConditionOp  values that do not depend on the image, known when sampling (class labels, ...)
    ConvOp       bias + sum over taps, then an elementwise expression
    MapOp        an elementwise expression
    AttendOp     attention over positions
    HeadOp       channels -> the distribution of one colour

Some ops may form a loop: they read, at earlier positions, what they themselves write. So recurrences are written.

A sequence is a map of one row. What flattens a grid, or folds a sequence into one, is a MapOp whose loads are `flat`.

What lowering yields becomes what is scheduled by the passes of `pixelfast.passes`, each from plan to plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np

ZERO = -1
WHOLE = (0, 0, 1, 1)  # the phase of an op that writes all positions of its map
NO_REFS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Map:
    """A feature map. `first` is the plan-wide number of its first channel; `home` and `home_channel` say of
    which map, and from which channel on, it was split off: such maps lie side by side in memory."""

    name: str
    height: int
    width: int
    channels: int
    first: int
    home: int
    home_channel: int = 0

    @property
    def refs(self) -> np.ndarray:
        return np.arange(self.first, self.first + self.channels)


@dataclass(frozen=True, eq=False)
class Instruction:
    """One line of an elementwise expression; its result is a register with its own index.

    `fn` is a name of ops.def. `args` are registers. `load` reads channels `refs` (one per output channel) at
    (y + dy, x + dx), zero outside the grid; with `flat` (first, step), the i-th position of the op in raster order
    reads position first + step*i of the map in raster order. `product` reads channels `refs` of the op's own product;
    `value` is the float of a `scalar` or the array of a `vector`.
    """

    fn: str
    args: tuple[int, ...] = ()
    refs: np.ndarray = field(default_factory=lambda: NO_REFS)
    offset: tuple[int, int] = (0, 0)
    value: float | np.ndarray | None = None
    flat: tuple[int, int] | None = None

    def reading(self, refs: np.ndarray) -> Instruction:
        """The same of other channels."""
        return Instruction(self.fn, self.args, refs, self.offset, self.value, self.flat)

    def select(self, channels: np.ndarray) -> Instruction:
        """The same for a subset of output channels."""
        of_channels = isinstance(self.value, np.ndarray)
        if not len(self.refs) and not of_channels:
            return self
        refs = self.refs[channels] if len(self.refs) else self.refs
        value = self.value[channels] if isinstance(self.value, np.ndarray) else self.value
        return Instruction(self.fn, self.args, refs, self.offset, value, self.flat)


Code = tuple[Instruction, ...]


def stride_of(refs: np.ndarray) -> int | None:
    """1 where the channels ascend one by one, 0 where they are all the same, None otherwise."""
    if len(refs) == 1:
        return 0 if refs[0] == ZERO else 1
    steps = np.unique(np.diff(refs))
    if len(steps) > 1 or steps[0] not in (0, 1) or (steps[0] == 1 and refs[0] == ZERO):
        return None
    return int(steps[0])


@dataclass(frozen=True, eq=False)
class InputOp:
    out: int
    colour: int
    table: np.ndarray  # float32 (levels, channels)
    where: str = "input"


@dataclass(frozen=True, eq=False)
class ConstantOp:
    out: int
    values: np.ndarray  # float32 (height or 1, width or 1, channels)
    where: str = "constant"


@dataclass(frozen=True, eq=False)
class ConditionOp:
    out: int
    key: int  # which of the captured conditions
    extent: tuple[int, int]  # (height or 1, width or 1)
    where: str = "condition"


@dataclass(frozen=True, eq=False)
class ConvOp:
    """out[y, x] = code(bias + sum_t sum_i in[refs[i]][sy*y + dy_t, sx*x + dx_t] * weight[t, i]).

    With `start`, the sums go on from those channels of a map, in place of the bias.

    A transposed convolution is one such op for each phase of its output: with `phase` (p_y, p_x, s_y, s_x), position
    (y, x) of the op is position (s_y*y + p_y, s_x*x + p_x) of the map, which several ops then write together.
    """

    out: int
    refs: np.ndarray  # (in,)
    offsets: tuple[tuple[int, int], ...]  # (dy, dx) of each tap, in raster order
    weight: np.ndarray  # float32 (taps, in, products)
    bias: np.ndarray | None  # float32 (products,)
    stride: tuple[int, int] = (1, 1)
    phase: tuple[int, int, int, int] = WHOLE
    code: Code = ()
    where: str = "conv"
    start: np.ndarray = field(default_factory=lambda: NO_REFS)  # (products,) or none

    @property
    def products(self) -> int:
        return self.weight.shape[2]

    @cached_property
    def alive(self) -> np.ndarray:
        """bool (taps, in): whether some weight is not exactly zero."""
        return (self.weight != 0).any(axis=2)


@dataclass(frozen=True, eq=False)
class MapOp:
    """out[y, x] = code. `phase`: as for ConvOp; offsets of its loads are from the position of the op."""

    out: int
    code: Code
    where: str = "map"
    phase: tuple[int, int, int, int] = WHOLE


@dataclass(frozen=True, eq=False)
class Keys:
    """Which positions each query attends to: runs first[q] to first[q + 1], each from start up to end, ascending."""

    first: np.ndarray  # (queries + 1,)
    start: np.ndarray
    end: np.ndarray

    @staticmethod
    def of(live: np.ndarray) -> Keys:
        """live: bool (queries, keys)."""
        edges = np.diff(np.pad(live, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        query, start = np.nonzero(edges == 1)
        _, end = np.nonzero(edges == -1)
        return Keys(np.searchsorted(query, np.arange(len(live) + 1)), start, end)

    def runs(self, query: int) -> list[tuple[int, int]]:
        at = slice(self.first[query], self.first[query + 1])
        return list(zip(self.start[at].tolist(), self.end[at].tolist(), strict=True))

    @cached_property
    def counts(self) -> np.ndarray:
        """How many positions each query attends to."""
        total = np.concatenate([[0], np.cumsum(self.end - self.start)])
        return total[self.first[1:]] - total[self.first[:-1]]


@dataclass(frozen=True, eq=False)
class AttendOp:
    """out[q, h] = sum_k softmax_k(query[q, h] . key[k, h] + bias[h, q, k]) * value[k, h], for each head h, over the
    positions k of `keys`; zero where there are none (Vaswani et al. 2017, equation 1, scaled beforehand).

    Query, key and value are channels of sequences, head by head; `bias` is float32 (1 or heads, queries, positions).
    """

    out: int
    heads: int
    query: np.ndarray  # (heads * channels of a key,)
    key: np.ndarray
    value: np.ndarray  # (heads * channels of a value,)
    keys: Keys
    bias: np.ndarray | None = None
    where: str = "attend"

    @property
    def refs(self) -> np.ndarray:
        return np.concatenate([self.query, self.key, self.value])


@dataclass(frozen=True, eq=False)
class HeadOp:
    """`kind` is an opcode of ops.def; `refs` are the channels of its parameters."""

    kind: str
    colour: int
    refs: np.ndarray
    where: str = "head"


Op = InputOp | ConstantOp | ConditionOp | ConvOp | MapOp | AttendOp | HeadOp


@dataclass(frozen=True)
class Read:
    """An op at (y, x) reads `map` at (stride_y*y + dy, stride_x*x + dx), or as `Instruction.flat` says, or `keys`."""

    map: int
    dy: int
    dx: int
    stride: tuple[int, int] = (1, 1)
    flat: tuple[int, int] | None = None
    keys: Keys | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    shape: tuple[int, int, int]  # (colours, height, width)
    levels: int
    maps: tuple[Map, ...]
    ops: tuple[Op, ...]
    _firsts: np.ndarray = field(init=False, repr=False)
    _reads: dict[int, tuple[Op, list[Read]]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_firsts", np.array([m.first for m in self.maps], np.int64))

    @cached_property
    def structure(self) -> bytes:
        """A digest of all but the values of weights, tables and constants: of what a schedule depends on."""
        digest = hashlib.sha256(repr((self.shape, self.levels, self.maps)).encode())
        for op in self.ops:
            words: list[object] = [type(op).__name__]
            arrays: list[np.ndarray] = []
            if isinstance(op, ConvOp):
                arrays.append(op.alive)
            for part in fields(op):
                value = getattr(op, part.name)
                if isinstance(value, Keys):
                    arrays += [value.first, value.start, value.end]
                elif part.name == "code":
                    words += [(i.fn, i.args, i.offset, i.flat) for i in value]
                    arrays += [i.refs for i in value]
                elif isinstance(value, np.ndarray) and value.dtype == np.int64:
                    arrays.append(value)
                else:
                    words.append(value.shape if isinstance(value, np.ndarray) else value)
            digest.update(repr((words, [a.shape for a in arrays])).encode())
            for array in arrays:
                digest.update(np.ascontiguousarray(array).data)
        return digest.digest()

    def map_of(self, refs: np.ndarray) -> np.ndarray:
        """The map of each channel number, ZERO where there is none."""
        found = np.searchsorted(self._firsts, refs, side="right") - 1
        return np.where(refs == ZERO, ZERO, found)

    @cached_property
    def parts(self) -> tuple[range, ...]:
        """The ops, by index: one by one, but for the loops."""
        last = {op.out: i for i, op in enumerate(self.ops) if not isinstance(op, HeadOp)}
        ends = [max([i, *(last.get(r.map, -1) for r in self.reads(op))]) for i, op in enumerate(self.ops)]
        found, start, end = [], 0, -1
        for i, reaches in enumerate(ends):
            end = max(end, reaches)
            if end == i:
                found.append(range(start, i + 1))
                start = i + 1
        return tuple(found)

    @cached_property
    def loops(self) -> frozenset[int]:
        """The ops that are part of a loop, by index."""
        several = {i for part in self.parts if len(part) > 1 for i in part}
        alone = {
            i
            for i, op in enumerate(self.ops)
            if not isinstance(op, HeadOp) and any(read.map == op.out for read in self.reads(op))
        }
        return frozenset(several | alone)

    def written_by(self, part: Iterable[int]) -> set[int]:
        """The maps that some ops write."""
        return {op.out for op in (self.ops[i] for i in part) if not isinstance(op, HeadOp)}

    def name_of(self, op: Op) -> str:
        return f"head.{op.colour}" if isinstance(op, HeadOp) else self.maps[op.out].name

    def live_taps(self, op: ConvOp) -> list[tuple[int, int]]:
        """(tap, source map) pairs that reach some product through a weight that is not exactly zero."""
        sources = self.map_of(op.refs)
        return [
            (t, int(m))
            for t in range(len(op.offsets))
            for m in dict.fromkeys(sources[op.alive[t]].tolist())
            if m != ZERO
        ]

    def reads(self, op: Op) -> list[Read]:
        """Everything that one position of the op reads."""
        known = self._reads.get(id(op))
        if known is None or known[0] is not op:
            known = self._reads[id(op)] = (op, self._find_reads(op))
        return known[1]

    def _find_reads(self, op: Op) -> list[Read]:
        found: dict[Read, None] = {}
        if isinstance(op, ConvOp):
            for t, m in self.live_taps(op):
                found[Read(m, *op.offsets[t], op.stride)] = None
            for m in np.unique(self.map_of(op.start)).tolist():
                found[Read(m, 0, 0)] = None
        if isinstance(op, ConvOp | MapOp):
            for ins in op.code:
                if ins.fn == "load":
                    for m in np.unique(self.map_of(ins.refs)).tolist():
                        if m != ZERO:
                            found[Read(m, *ins.offset, flat=ins.flat)] = None
        if isinstance(op, AttendOp):
            for m in np.unique(self.map_of(op.query)).tolist():
                found[Read(m, 0, 0)] = None
            for m in np.unique(self.map_of(np.concatenate([op.key, op.value]))).tolist():
                found[Read(m, 0, 0, keys=op.keys)] = None
        if isinstance(op, HeadOp):
            for m in np.unique(self.map_of(op.refs)).tolist():
                found[Read(m, 0, 0)] = None
        return list(found)

    def grid(self, op: Op) -> tuple[int, int]:
        """The positions that the op runs at."""
        if isinstance(op, HeadOp):
            return self.shape[1:]
        rows, columns = self.written(op)
        m = self.maps[op.out]
        return len(range(m.height)[rows]), len(range(m.width)[columns])

    def written(self, op: Op) -> tuple[slice, slice]:
        """The positions of its map that the op writes."""
        p_y, p_x, s_y, s_x = op.phase if isinstance(op, ConvOp | MapOp) else WHOLE
        return slice(p_y, None, s_y), slice(p_x, None, s_x)

    def verify(self) -> None:
        """Assert what every pass must keep: numbering, shapes, every position written once, topological order."""
        written: dict[int, np.ndarray] = {}
        total = sum(m.channels for m in self.maps)
        assert [m.first for m in self.maps] == np.cumsum([0, *(m.channels for m in self.maps)])[:-1].tolist()
        own = {i: self.written_by(part) for part in self.parts for i in part if i in self.loops}
        for i, op in enumerate(self.ops):
            for read in self.reads(op):
                whole = read.map in written and written[read.map].all()
                elsewhere = (read.dy, read.dx) != (0, 0) and read.flat is None and read.keys is None
                known = whole or (elsewhere and read.map in own.get(i, ()))
                assert known, f"{op.where} reads {self.maps[read.map].name} before it is written"
            if isinstance(op, HeadOp):
                continue
            out = self.maps[op.out]
            done = written.setdefault(op.out, np.zeros((out.height, out.width), bool))
            assert not done[self.written(op)].any(), f"{out.name} is written twice"
            done[self.written(op)] = True
            width = out.channels
            if isinstance(op, ConvOp):
                assert op.weight.shape[:2] == (len(op.offsets), len(op.refs))
                assert list(op.offsets) == sorted(op.offsets)
                assert op.refs.max(initial=ZERO) < total
                assert op.bias is None or op.bias.shape == (op.products,)
                assert op.code or op.products == width
                assert not len(op.start) or (op.bias is None and len(op.start) == op.products)
                assert not len(op.start) or stride_of(op.start) == 1
                assert not op.code or op.phase == WHOLE
            for ins in getattr(op, "code", ()):
                assert len(ins.refs) in (0, width)
            if isinstance(op, AttendOp):
                assert len(op.query) == len(op.key)
                assert len(op.value) == width
                assert len(op.query) % op.heads == 0
                assert width % op.heads == 0
                assert out.height == 1
                assert len(op.keys.first) == out.width + 1
                assert min(op.refs) != ZERO
        assert len(written) == len(self.maps)

    def __str__(self) -> str:
        rows = []
        for op in self.ops:
            height, width = self.grid(op)
            if isinstance(op, HeadOp):
                kind, size = op.kind, len(op.refs)
            else:
                kind, size = type(op).__name__.removesuffix("Op").lower(), self.maps[op.out].channels
            reads = ", ".join(f"{self.maps[r.map].name}({r.dy:+d},{r.dx:+d})" for r in self.reads(op))
            fns = " ".join(ins.fn for ins in getattr(op, "code", ()) if ins.fn not in ("load", "product"))
            rows.append(
                f"{self.name_of(op):32} {kind:12} {height:4}x{width:<4} {size:5}  {fns}  <- {reads[:120]}"
            )
        return "\n".join(rows)


class Builder:
    """Collects maps and ops while lowering."""

    def __init__(self) -> None:
        self.maps: list[Map] = []
        self.ops: list[Op] = []
        self._channels = 0

    def map(
        self, name: str, height: int, width: int, channels: int, home: int | None = None, at: int = 0
    ) -> int:
        index = len(self.maps)
        self.maps.append(
            Map(name, height, width, channels, self._channels, index if home is None else home, at)
        )
        self._channels += channels
        return index

    def refs(self, index: int) -> np.ndarray:
        return self.maps[index].refs

    def grid_of(self, refs: np.ndarray) -> tuple[int, int]:
        """The grid of the maps that hold these channels (one and the same for all of them)."""
        firsts = np.array([m.first for m in self.maps])
        first = int(np.searchsorted(firsts, refs[refs != ZERO][0], side="right")) - 1
        return self.maps[first].height, self.maps[first].width

    def in_one_map(self, refs: np.ndarray) -> bool:
        return any(m.first <= refs.min() and refs.max() < m.first + m.channels for m in self.maps)

    def add(self, op: Op) -> None:
        self.ops.append(op)

    def plan(self, shape: tuple[int, int, int], levels: int) -> Plan:
        return Plan(shape, levels, tuple(self.maps), tuple(self.ops))
