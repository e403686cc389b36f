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
    HeadOp       channels -> the distribution of one colour

Three passes turn what lowering yields into what is scheduled; each is a function from plan to plan:

    split   channels of one map whose dependence on other maps differs become maps of their own (the colours of a
            pixel, masked channel groups), so that all channels at a position become ready together
    prune   drops maps that nothing reads
    fuse    moves elementwise expressions into each other and into the products that feed them

None of them changes a bit of any result: sums keep their order, and expressions are evaluated as written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

ZERO = -1


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
    (y + dy, x + dx), zero outside the grid; `product` reads channels `refs` of the op's own product; `value` is
    the float of a `scalar` or the array of a `vector`.
    """

    fn: str
    args: tuple[int, ...] = ()
    refs: np.ndarray | None = None
    offset: tuple[int, int] = (0, 0)
    value: float | np.ndarray | None = None

    def select(self, channels: np.ndarray) -> Instruction:
        """The same for a subset of output channels."""
        refs = None if self.refs is None else self.refs[channels]
        value = self.value[channels] if isinstance(self.value, np.ndarray) else self.value
        return replace(self, refs=refs, value=value)


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
    """out[y, x] = code(bias + sum_t sum_i in[refs[i]][sy*y + dy_t, sx*x + dx_t] * weight[t, i])."""

    out: int
    refs: np.ndarray  # (in,)
    offsets: tuple[tuple[int, int], ...]  # (dy, dx) of each tap, in raster order
    weight: np.ndarray  # float32 (taps, in, products)
    bias: np.ndarray | None  # float32 (products,)
    stride: tuple[int, int] = (1, 1)
    code: Code = ()
    where: str = "conv"

    @property
    def products(self) -> int:
        return self.weight.shape[2]


@dataclass(frozen=True, eq=False)
class MapOp:
    out: int
    code: Code
    where: str = "map"


@dataclass(frozen=True, eq=False)
class HeadOp:
    """`kind` is an opcode of ops.def; `refs` are the channels of its parameters."""

    kind: str
    colour: int
    refs: np.ndarray
    where: str = "head"


Op = InputOp | ConstantOp | ConditionOp | ConvOp | MapOp | HeadOp


@dataclass(frozen=True)
class Read:
    """An op at (y, x) reads `map` at (stride_y*y + dy, stride_x*x + dx)."""

    map: int
    dy: int
    dx: int
    stride: tuple[int, int] = (1, 1)


@dataclass(frozen=True, eq=False)
class Plan:
    shape: tuple[int, int, int]  # (colours, height, width)
    levels: int
    maps: tuple[Map, ...]
    ops: tuple[Op, ...]
    _firsts: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_firsts", np.array([m.first for m in self.maps], np.int64))

    def map_of(self, refs: np.ndarray) -> np.ndarray:
        """The map of each channel number, ZERO where there is none."""
        found = np.searchsorted(self._firsts, refs, side="right") - 1
        return np.where(refs == ZERO, ZERO, found)

    def name_of(self, op: Op) -> str:
        return f"head.{op.colour}" if isinstance(op, HeadOp) else self.maps[op.out].name

    def live_taps(self, op: ConvOp) -> list[tuple[int, int]]:
        """(tap, source map) pairs that reach some product through a weight that is not exactly zero."""
        sources = self.map_of(op.refs)
        alive = (op.weight != 0).any(axis=2)  # (taps, in)
        return [
            (t, int(m))
            for t in range(len(op.offsets))
            for m in dict.fromkeys(sources[alive[t]].tolist())
            if m != ZERO
        ]

    def reads(self, op: Op) -> list[Read]:
        """Everything that one position of the op reads."""
        found: dict[Read, None] = {}
        if isinstance(op, ConvOp):
            for t, m in self.live_taps(op):
                found[Read(m, *op.offsets[t], op.stride)] = None
        if isinstance(op, ConvOp | MapOp):
            for ins in op.code:
                if ins.fn == "load":
                    for m in np.unique(self.map_of(ins.refs)).tolist():
                        if m != ZERO:
                            found[Read(m, *ins.offset)] = None
        if isinstance(op, HeadOp):
            for m in np.unique(self.map_of(op.refs)).tolist():
                found[Read(m, 0, 0)] = None
        return list(found)

    def grid(self, op: Op) -> tuple[int, int]:
        if isinstance(op, HeadOp):
            return self.shape[1:]
        return self.maps[op.out].height, self.maps[op.out].width

    def verify(self) -> None:
        """Assert what every pass must keep: numbering, shapes, one writer a map, topological order."""
        written: set[int] = set()
        total = sum(m.channels for m in self.maps)
        assert [m.first for m in self.maps] == np.cumsum([0, *(m.channels for m in self.maps)])[:-1].tolist()
        for op in self.ops:
            for read in self.reads(op):
                assert read.map in written, f"{op.where} reads {self.maps[read.map].name} before it is written"
            if isinstance(op, HeadOp):
                continue
            out = self.maps[op.out]
            assert op.out not in written, f"{out.name} is written twice"
            written.add(op.out)
            width = out.channels
            if isinstance(op, ConvOp):
                assert op.weight.shape[:2] == (len(op.offsets), len(op.refs))
                assert list(op.offsets) == sorted(op.offsets)
                assert op.refs.max(initial=ZERO) < total
                assert op.bias is None or op.bias.shape == (op.products,)
                assert op.code or op.products == width
            for ins in getattr(op, "code", ()):
                assert ins.refs is None or len(ins.refs) == width
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

    def map(self, name: str, height: int, width: int, channels: int, home: int | None = None, at: int = 0) -> int:
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

    def add(self, op: Op) -> None:
        self.ops.append(op)

    def plan(self, shape: tuple[int, int, int], levels: int) -> Plan:
        return Plan(shape, levels, tuple(self.maps), tuple(self.ops))


# --- split ----------------------------------------------------------------------------------------------------

Groups = dict[int, list[np.ndarray]]  # for each map, its channels (0-based) in groups


def _groups(keys: Sequence[object]) -> list[np.ndarray]:
    """Indices of equal keys, groups in the order of their first member."""
    found: dict[object, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return [np.array(members) for members in found.values()]


def split(plan: Plan) -> Plan:
    """Refine maps until all channels of a map depend on the same maps through the same taps."""
    groups: Groups = {}
    group_of = np.full(sum(m.channels for m in plan.maps) + 1, ZERO, np.int64)  # by channel; the last serves ZERO
    count = 0
    for op in plan.ops:
        if isinstance(op, HeadOp):
            continue
        keys: list[object] = [()] * plan.maps[op.out].channels
        if isinstance(op, ConvOp):
            assert not op.code, "split comes before fuse"
            sources = group_of[op.refs]
            names = np.unique(sources)
            if len(names):
                alive = np.stack([(op.weight[:, sources == g] != 0).any(axis=1) for g in names])
                keys = [alive[:, :, j].tobytes() for j in range(op.products)]
        elif isinstance(op, MapOp):
            loads = [group_of[ins.refs].tolist() for ins in op.code if ins.fn == "load"]
            keys = list(zip(*loads, strict=True)) or keys
        groups[op.out] = _groups(keys)
        for members in groups[op.out]:
            group_of[plan.maps[op.out].first + members] = count
            count += 1
    return _regroup(plan, groups)


def split_by_readers(plan: Plan) -> Plan:
    """Refine maps until all channels of a map are read by the same ops and reach the same heads."""
    groups: Groups = {}
    readers: list[set] = [set() for _ in range(sum(m.channels for m in plan.maps) + 1)]
    for i, op in reversed(list(enumerate(plan.ops))):
        if isinstance(op, HeadOp):
            for ref in op.refs.tolist():
                readers[ref].add((i, 0))
            continue
        m = plan.maps[op.out]
        groups[op.out] = _groups([frozenset(readers[m.first + c]) for c in range(m.channels)])
        for g, members in enumerate(groups[op.out]):
            read: list[int] = []
            if isinstance(op, ConvOp):
                read = op.refs[(op.weight[:, :, members] != 0).any(axis=(0, 2))].tolist()
            elif isinstance(op, MapOp):
                read = [r for ins in op.code if ins.fn == "load" for r in ins.refs[members].tolist()]
            for ref in read:
                readers[ref].add((i, g))
    return _regroup(plan, groups)


def _regroup(plan: Plan, groups: Groups) -> Plan:
    """The same plan with each group of channels as a map of its own; a map's groups lie side by side."""
    build = Builder()
    renumbered = np.full(sum(m.channels for m in plan.maps) + 1, ZERO, np.int64)
    homes: dict[int, int] = {}
    for op in plan.ops:
        if isinstance(op, HeadOp):
            refs = renumbered[op.refs]
            if stride_of(refs) != 1:  # a runtime reads a head's parameters in order
                out = build.map(f"head.{op.colour}.parameters", *plan.shape[1:], len(refs))
                build.add(MapOp(out, (Instruction("load", refs=refs),), op.where))
                refs = build.refs(out)
            build.add(replace(op, refs=refs))
            continue
        old = plan.maps[op.out]
        at = old.home_channel
        for g, members in enumerate(groups[op.out]):
            name = old.name if len(groups[op.out]) == 1 else f"{old.name}/{g}"
            new = build.map(name, old.height, old.width, len(members), homes.get(old.home), at)
            homes.setdefault(old.home, new)
            at += len(members)
            renumbered[old.first + members] = build.refs(new)
            build.add(_part(op, new, members, renumbered))
    return build.plan(plan.shape, plan.levels)


def _part(op: Op, out: int, members: np.ndarray, renumbered: np.ndarray) -> Op:
    """The op, for some channels of its map only. Sums run over ascending channels, as numbered anew."""
    if isinstance(op, ConvOp):
        refs = renumbered[op.refs]
        ascending = np.argsort(refs, kind="stable")
        weight = np.ascontiguousarray(op.weight[:, ascending][:, :, members])
        bias = None if op.bias is None else op.bias[members]
        return replace(op, out=out, refs=refs[ascending], weight=weight, bias=bias)
    if isinstance(op, MapOp):
        chosen = [ins.select(members) for ins in op.code]
        code = tuple(replace(i, refs=renumbered[i.refs]) if i.fn == "load" else i for i in chosen)
        return replace(op, out=out, code=code)
    if isinstance(op, InputOp):
        return replace(op, out=out, table=np.ascontiguousarray(op.table[:, members]))
    if isinstance(op, ConstantOp):
        return replace(op, out=out, values=np.ascontiguousarray(op.values[:, :, members]))
    assert not isinstance(op, HeadOp)
    return replace(op, out=out)


# --- prune ----------------------------------------------------------------------------------------------------


def prune(plan: Plan) -> Plan:
    """Drop the maps that no head depends on."""
    needed: set[int] = set()
    for op in reversed(plan.ops):
        if isinstance(op, HeadOp) or op.out in needed:
            needed.update(read.map for read in plan.reads(op))
    return _keep(plan, [op for op in plan.ops if isinstance(op, HeadOp) or op.out in needed])


def _keep(plan: Plan, ops: Sequence[Op]) -> Plan:
    """A plan of these ops and the maps that they write, renumbered."""
    kept = sorted(op.out for op in ops if not isinstance(op, HeadOp))
    new_index = {old: new for new, old in enumerate(kept)}
    total = sum(m.channels for m in plan.maps)
    renumbered = np.full(total + 1, ZERO, np.int64)
    maps, first = [], 0
    homes: dict[int, int] = {}
    for old in kept:
        m = plan.maps[old]
        homes.setdefault(m.home, new_index[old])
        maps.append(replace(m, first=first, home=homes[m.home]))
        renumbered[m.first : m.first + m.channels] = np.arange(first, first + m.channels)
        first += m.channels

    def rewrite(op: Op) -> Op:
        if isinstance(op, HeadOp):
            return replace(op, refs=renumbered[op.refs])
        changes: dict = {"out": new_index[op.out]}
        if isinstance(op, ConvOp):
            changes["refs"] = renumbered[op.refs]
        if isinstance(op, ConvOp | MapOp):
            changes["code"] = tuple(
                replace(i, refs=renumbered[i.refs]) if i.fn == "load" else i for i in op.code
            )
        return replace(op, **changes)

    return Plan(plan.shape, plan.levels, tuple(maps), tuple(rewrite(op) for op in ops))


# --- fuse -----------------------------------------------------------------------------------------------------


def fuse(plan: Plan, lateness: Callable[[int], float]) -> Plan:
    """Evaluate expressions where their operands are made.

    An expression that alone reads another expression takes it in; a product that is read by one expression only
    takes that expression as its epilogue. Where an expression reads several such products, the one that is
    ready last takes it (`lateness` of a map, larger is later): the others can then run earlier, in larger batches.
    """
    readers: dict[int, list[int]] = {m: [] for m in range(len(plan.maps))}
    ops: dict[int, Op] = dict(enumerate(plan.ops))
    writer = {op.out: i for i, op in ops.items() if not isinstance(op, HeadOp)}
    for i, op in ops.items():
        for m in {read.map for read in plan.reads(op)}:
            readers[m].append(i)

    def absorbable(m: int, reader: int) -> bool:
        """Whether the map is read by this op only, and only at its own position, by loads."""
        op = ops[reader]
        assert isinstance(op, MapOp)
        here = plan.maps[op.out]
        there = plan.maps[m]
        return (
            readers[m] == [reader]
            and (here.height, here.width) == (there.height, there.width)
            and all(read == Read(m, 0, 0) for read in plan.reads(op) if read.map == m)
        )

    for i in sorted(ops):
        if not isinstance(ops[i], MapOp):
            continue
        while True:  # inline expressions
            op = ops[i]
            inner = [
                m
                for m in dict.fromkeys(r.map for r in plan.reads(op))
                if isinstance(ops.get(writer[m]), MapOp) and absorbable(m, i)
            ]
            inner = [m for m in inner if not any(_is_mixed(ins, plan.maps[m]) for ins in op.code)]
            if not inner:
                break
            m = inner[0]
            producer = ops.pop(writer[m])
            ops[i] = replace(op, code=_inline(op.code, plan.maps[m], producer.code))
            for read in plan.reads(producer):
                readers[read.map] = [i if reader == writer[m] else reader for reader in readers[read.map]]
                readers[read.map] = list(dict.fromkeys(readers[read.map]))
    for i in sorted(ops):
        op = ops[i]
        if not isinstance(op, MapOp):
            continue
        found = [
            m
            for m in dict.fromkeys(r.map for r in plan.reads(op))
            if isinstance(ops.get(writer[m]), ConvOp)
            and not ops[writer[m]].code
            and absorbable(m, i)
            and all(ins.fn != "load" or stride_of(ins.refs) is not None for ins in op.code)
            and all(stride_of(ins.refs) == 1 for ins in op.code if _reads(ins, plan.maps[m]))
        ]
        if found:
            m = max(found, key=lateness)
            conv = ops.pop(writer[m])
            first = plan.maps[m].first
            code = tuple(
                replace(ins, fn="product", refs=ins.refs - first) if _reads(ins, plan.maps[m]) else ins
                for ins in op.code
            )
            ops[i] = replace(conv, out=op.out, code=code)
    return _keep(plan, [ops[i] for i in sorted(ops)])


def _reads(ins: Instruction, m: Map) -> bool:
    return ins.fn == "load" and bool(((ins.refs >= m.first) & (ins.refs < m.first + m.channels)).any())


def _is_mixed(ins: Instruction, m: Map) -> bool:
    """Whether a load takes some channels from the map and some from elsewhere."""
    if ins.fn != "load":
        return False
    inside = (ins.refs >= m.first) & (ins.refs < m.first + m.channels)
    return bool(inside.any() and not inside.all())


def _inline(code: Code, m: Map, producer: Code) -> Code:
    """`code` with every load of map `m` replaced by the expression that writes it."""
    result: list[Instruction] = []
    place: list[int] = []
    for ins in code:
        if _reads(ins, m):
            base = len(result)
            for inner in producer:
                chosen = inner.select(ins.refs - m.first)
                result.append(replace(chosen, args=tuple(base + a for a in inner.args)))
            place.append(len(result) - 1)
        else:
            result.append(replace(ins, args=tuple(place[a] for a in ins.args)))
            place.append(len(result) - 1)
    return tuple(result)
