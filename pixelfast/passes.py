"""Passes: from what lowering yields to what is scheduled, each a function from plan to plan.

    split   channels of one map whose dependence on other maps differs become maps of their own (the colours of a
            pixel, masked channel groups), so that all channels at a position become ready together
    prune   drops channels that no head depends on
    inline  moves elementwise expressions into each other, and tanh(a) * sigmoid(b) into one function
    fuse    moves expressions into the products that feed them
    share   sums once what several parts of a product read at other positions (sharing.py)

`split` and `prune` may renumber channels, and with them the order of sums, over ascending channels, and `inline` may
round differently: the bits of a result are defined from there on. `fuse` and `share` change none in fp32, nor do
order and schedule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .plan import (
    WHOLE,
    ZERO,
    AttendOp,
    Builder,
    Code,
    ConditionOp,
    ConstantOp,
    ConvOp,
    HeadOp,
    InputOp,
    Instruction,
    Map,
    MapOp,
    Op,
    Plan,
    Read,
    stride_of,
)

# --- split ----------------------------------------------------------------------------------------------------

Groups = dict[int, list[np.ndarray]]  # for each map, its channels (0-based) in groups


def _groups(keys: Sequence[object]) -> list[np.ndarray]:
    """Indices of equal keys, groups in the order of their first member."""
    found: dict[object, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return [np.array(members) for members in found.values()]


def split(plan: Plan) -> Plan:
    """Refine maps until all channels of a map depend on the same maps through the same taps.

    The maps of a loop depend on each other, so they are refined together, until nothing changes. What a loop loads must
    stay in order; where it would not, the loop stays whole, and so does what it reads.
    """
    whole: set[int] = set()
    while True:
        refined = _Refined(plan, whole)
        torn = [part for part in plan.parts if part[0] in plan.loops and not refined.in_order(part)]
        if not torn:
            return _regroup(plan, refined.groups)
        for part in torn:
            whole |= plan.written_by(part) | {read.map for i in part for read in plan.reads(plan.ops[i])}


class _Refined:
    """Channels of the maps of a plan in groups of equal dependence; all of a map are alike if it is to stay whole."""

    def __init__(self, plan: Plan, whole: set[int]):
        self.plan, self.whole = plan, whole
        self.groups: Groups = {}
        channels = sum(m.channels for m in plan.maps) + 1  # the last serves ZERO
        self.group_of, self.place = (np.full(channels, ZERO, np.int64) for _ in range(2))
        self.so_far: dict[int, list[list[object]]] = {}  # by map, of the ops that write it
        self.count = 0
        for part in plan.parts:
            before: list[int] = []
            while before != (now := [len(self.groups.get(m, ())) for m in sorted(plan.written_by(part))]):
                before = now
                self._refine(part)
                if part[0] not in plan.loops:
                    break

    def _refine(self, part: range) -> None:
        for op in (self.plan.ops[i] for i in part):
            if isinstance(op, HeadOp):
                continue
            keys = [self._dependence(op)]
            if part[0] not in self.plan.loops:
                keys = self.so_far.setdefault(op.out, [])
                keys.append(self._dependence(op))
            self.groups[op.out] = _groups(list(zip(*keys, strict=True)))
            for members in self.groups[op.out]:
                refs = self.plan.maps[op.out].first + members
                self.group_of[refs], self.place[refs] = self.count, np.arange(len(members))
                self.count += 1

    def _dependence(self, op: Op) -> list[object]:
        """By channel: what it depends on."""
        assert not isinstance(op, HeadOp)
        nothing: list[object] = [()] * self.plan.maps[op.out].channels
        if op.out in self.whole or not isinstance(op, ConvOp | MapOp):
            return nothing  # as the channels of an attention, which are alike
        found = [self.group_of[ins.refs].tolist() for ins in op.code if ins.fn == "load"]
        if isinstance(op, ConvOp):
            sources = self.group_of[op.refs]
            alive = [(op.weight[:, sources == g] != 0).any(axis=1) for g in np.unique(sources)]
            if alive:
                by_product = np.stack(alive)
                taken = [ins.refs for ins in op.code if ins.fn == "product"] or [np.arange(op.products)]
                found += [[by_product[:, :, j].tobytes() for j in columns] for columns in taken]
        return list(zip(*found, strict=True)) or nothing

    def in_order(self, part: range) -> bool:
        """Whether the ops of a loop load neighbours, in order, or the same for all channels."""
        for op in (self.plan.ops[i] for i in part):
            if not isinstance(op, ConvOp):
                continue
            for members in self.groups[op.out]:
                for ins in op.code:
                    if ins.fn == "load":
                        refs = ins.refs[members]
                        steps = set(np.diff(self.place[refs]).tolist())
                        same = (refs == refs[0]).all()
                        if not same and (steps != {1} or len(set(self.group_of[refs].tolist())) > 1):
                            return False
        return True


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
        if isinstance(op, AttendOp) or i in plan.loops:
            groups[op.out] = [np.arange(m.channels)]
        elif op.out not in groups:
            groups[op.out] = _groups([frozenset(readers[m.first + c]) for c in range(m.channels)])
        for g, members in enumerate(groups[op.out]):
            for ref in _read_by(op, members).tolist():
                readers[ref].add((i, g))
    return _regroup(plan, groups)


def _read_by(op: Op, members: np.ndarray) -> np.ndarray:
    """The channels that reach some of these channels of an op, through weights that are not exactly zero."""
    if isinstance(op, ConvOp) and not op.code:
        return op.refs[(op.weight[:, :, members] != 0).any(axis=(0, 2))]
    if isinstance(op, ConvOp):  # of a loop, which is whole
        return np.concatenate([op.refs, *(ins.refs for ins in op.code if ins.fn == "load")])
    if isinstance(op, MapOp):
        loads = [ins.refs[members] for ins in op.code if ins.fn == "load"]
        return np.concatenate(loads) if loads else np.zeros(0, np.int64)
    if isinstance(op, AttendOp):  # its channels share the scores
        return op.refs if len(members) else np.zeros(0, np.int64)
    return np.zeros(0, np.int64)


def _regroup(plan: Plan, groups: Groups) -> Plan:
    """The same plan with each group of channels as a map of its own; a map's groups lie side by side."""
    build = Builder()
    renumbered = np.full(sum(m.channels for m in plan.maps) + 1, ZERO, np.int64)
    parts = _new_maps(plan, groups, build, renumbered)
    for op in plan.ops:
        if isinstance(op, HeadOp):
            refs = _in_order(build, renumbered[op.refs], f"head.{op.colour}.parameters", op.where)
            build.add(replace(op, refs=refs))
            continue
        for g, members in enumerate(groups[op.out]):
            new = parts[op.out, g]
            if isinstance(op, AttendOp):
                name = plan.maps[op.out].name
                query, key, value = (
                    _in_order(build, renumbered[refs], f"{name}.{part}", op.where)
                    for part, refs in (("query", op.query), ("key", op.key), ("value", op.value))
                )
                build.add(replace(op, out=new, query=query, key=key, value=value))
                continue
            build.add(_part(op, new, members, renumbered))
    return build.plan(plan.shape, plan.levels)


def _new_maps(
    plan: Plan, groups: Groups, build: Builder, renumbered: np.ndarray
) -> dict[tuple[int, int], int]:
    """A map for each group of each map that is written; fills in the new number of each channel."""
    homes: dict[int, int] = {}
    parts: dict[tuple[int, int], int] = {}
    for out in dict.fromkeys(op.out for op in plan.ops if not isinstance(op, HeadOp)):
        old = plan.maps[out]
        at = old.home_channel
        for g, members in enumerate(groups[out]):
            name = old.name if len(groups[out]) == 1 else f"{old.name}/{g}"
            new = build.map(name, old.height, old.width, len(members), homes.get(old.home), at)
            homes.setdefault(old.home, new)
            parts[out, g] = new
            at += len(members)
            renumbered[old.first + members] = build.refs(new)
    return parts


def _in_order(build: Builder, refs: np.ndarray, name: str, where: str) -> np.ndarray:
    """Channels that a runtime reads in order, as neighbours in one map: copied to a map of their own if need be."""
    if stride_of(refs) == 1 and build.in_one_map(refs):
        return refs
    out = build.map(name, *build.grid_of(refs), len(refs))
    build.add(MapOp(out, (Instruction("load", refs=refs),), where))
    return build.refs(out)


def _part(op: Op, out: int, members: np.ndarray, renumbered: np.ndarray) -> Op:
    """The op, for some channels of its map only. Sums run over ascending channels, as numbered anew."""
    if isinstance(op, ConvOp):
        refs = renumbered[op.refs]
        ascending = np.argsort(refs, kind="stable")
        code = tuple(ins.select(members) for ins in op.code)
        taken = [ins.refs for ins in code if ins.fn == "product"] or [members]
        products = np.array(list(dict.fromkeys(np.concatenate(taken).tolist())), np.int64)
        weight = _take(_take(op.weight, ascending, 1), products, 2)
        bias = None if op.bias is None else op.bias[products]
        column = {j: i for i, j in enumerate(products.tolist())}
        code = tuple(
            ins.reading(np.array([column[j] for j in ins.refs.tolist()])) if ins.fn == "product" else ins
            for ins in _renumber(code, renumbered)
        )
        return replace(op, out=out, refs=refs[ascending], weight=weight, bias=bias, code=code)
    if isinstance(op, MapOp):
        return replace(op, out=out, code=_renumber(tuple(ins.select(members) for ins in op.code), renumbered))
    if isinstance(op, InputOp):
        return replace(op, out=out, table=np.ascontiguousarray(op.table[:, members]))
    if isinstance(op, ConstantOp):
        return replace(op, out=out, values=np.ascontiguousarray(op.values[:, :, members]))
    assert isinstance(op, ConditionOp)
    return replace(op, out=out)


def _take(values: np.ndarray, chosen: np.ndarray, axis: int) -> np.ndarray:
    """Entries of an axis: without a copy where they are all, in order."""
    if np.array_equal(chosen, np.arange(values.shape[axis])):
        return values
    return np.ascontiguousarray(values.take(chosen, axis))


def _renumber(code: Code, renumbered: np.ndarray) -> Code:
    return tuple(ins.reading(renumbered[ins.refs]) if ins.fn == "load" else ins for ins in code)


# --- prune ----------------------------------------------------------------------------------------------------


def prune(plan: Plan) -> Plan:
    """Drop the channels that no head depends on."""
    needed = np.zeros(sum(m.channels for m in plan.maps) + 1, bool)  # the last serves ZERO
    for part in reversed(plan.parts):
        ops = [plan.ops[i] for i in part]
        if part[0] in plan.loops:
            refs = np.concatenate([plan.maps[op.out].refs for op in ops if not isinstance(op, HeadOp)])
            needed[refs] = needed[refs].any()
        for op in reversed(ops):
            if isinstance(op, HeadOp):
                needed[op.refs] = True
            else:
                needed[_read_by(op, np.flatnonzero(needed[plan.maps[op.out].refs]))] = True
    groups = {i: _groups(needed[m.refs].tolist()) for i, m in enumerate(plan.maps)}
    # PyTorch makes all channels of a condition; those of an attention share their scores.
    whole = {op.out for op in plan.ops if isinstance(op, ConditionOp | AttendOp)}
    groups |= {i: [np.arange(plan.maps[i].channels)] for i in whole}
    parted = _regroup(plan, groups)
    read: set[int] = set()
    for part in reversed(parted.parts):
        ops = [parted.ops[i] for i in part]
        if any(isinstance(op, HeadOp) or op.out in read for op in ops):
            read.update(r.map for op in ops for r in parted.reads(op))
    return _keep(parted, [op for op in parted.ops if isinstance(op, HeadOp) or op.out in read])


def _keep(plan: Plan, ops: Sequence[Op]) -> Plan:
    """A plan of these ops and the maps that they write, renumbered."""
    kept = sorted({op.out for op in ops if not isinstance(op, HeadOp)})
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
        if isinstance(op, AttendOp):
            query, key, value = (renumbered[refs] for refs in (op.query, op.key, op.value))
            return replace(op, out=new_index[op.out], query=query, key=key, value=value)
        if isinstance(op, ConvOp):
            refs = renumbered[op.refs]
            return replace(op, out=new_index[op.out], refs=refs, code=_renumber(op.code, renumbered))
        if isinstance(op, MapOp):
            return replace(op, out=new_index[op.out], code=_renumber(op.code, renumbered))
        return replace(op, out=new_index[op.out])

    return Plan(plan.shape, plan.levels, tuple(maps), tuple(rewrite(op) for op in ops))


# --- inline and fuse ------------------------------------------------------------------------------------------


def inline(plan: Plan) -> Plan:
    """Evaluate an expression that is read by one expression only there, and gates in one go."""
    fusion = _Fusion(plan)
    for i in sorted(fusion.ops):
        fusion.inline(i)
    for i, op in fusion.ops.items():
        if isinstance(op, MapOp | ConvOp):
            fusion.ops[i] = replace(op, code=_with_gates(op.code))
    return _keep(plan, [fusion.ops[i] for i in sorted(fusion.ops)])


def _with_gates(code: Code) -> Code:
    """tanh(a) * sigmoid(b), used for nothing else, as one function."""
    uses = Counter(a for ins in code for a in ins.args)
    gates: dict[int, tuple[int, int]] = {}
    for i, ins in enumerate(code):
        if ins.fn != "mul" or any(uses[a] > 1 for a in ins.args):
            continue
        parts = {code[a].fn: a for a in ins.args}
        if parts.keys() == {"tanh", "sigmoid"}:
            gates[i] = parts["tanh"], parts["sigmoid"]
    gone = {a for parts in gates.values() for a in parts}
    result: list[Instruction] = []
    place: dict[int, int] = {}
    for i, ins in enumerate(code):
        if i in gone:
            continue
        args = [code[a].args[0] for a in gates[i]] if i in gates else ins.args
        chosen = Instruction("gate") if i in gates else ins
        place[i] = len(result)
        result.append(_moved(chosen, [place[a] for a in args]))
    return tuple(result)


def fuse(plan: Plan, lateness: Sequence[float]) -> Plan:
    """Make expressions the epilogues of the products that they alone read.

    Where an expression reads several such products, the one that is ready last takes it (`lateness` by map, larger is
    later): the others can then run earlier, in larger batches.
    """
    fusion = _Fusion(plan)
    for i in sorted(fusion.ops):
        fusion.attach(i, lateness)
    return _keep(plan, [fusion.ops[i] for i in sorted(fusion.ops)])


class _Fusion:
    """A plan while its ops are fused: ops by index, who writes each map, who reads it."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.ops: dict[int, Op] = dict(enumerate(plan.ops))
        self.writer = {op.out: i for i, op in self.ops.items() if not isinstance(op, HeadOp)}
        self.readers: dict[int, set[int]] = {m: set() for m in range(len(plan.maps))}
        for i, op in self.ops.items():
            for read in plan.reads(op):
                self.readers[read.map].add(i)

    def absorbable(self, i: int, op: MapOp) -> list[int]:
        """The maps that op i alone reads, and only at its own position, with all channels of a load from one map."""
        here = self.plan.maps[op.out]
        reads = self.plan.reads(op)
        found = []
        for m in dict.fromkeys(read.map for read in reads):
            there = self.plan.maps[m]
            if (
                self.readers[m] == {i}
                and (here.height, here.width) == (there.height, there.width)
                and all(read == Read(m, 0, 0) for read in reads if read.map == m)
                and all(_reads(ins, there) in (0, len(ins.refs)) for ins in op.code)
            ):
                found.append(m)
        return found

    def inline(self, i: int) -> None:
        """Take expressions that only op i reads into op i."""
        while True:
            op = self.ops[i]
            if not isinstance(op, MapOp):
                return
            for m in self.absorbable(i, op):
                producer = self.ops.get(self.writer[m])
                if isinstance(producer, MapOp) and producer.phase == WHOLE:
                    break
            else:
                return
            self.ops[i] = replace(op, code=_inline(op.code, self.plan.maps[m], producer.code))
            del self.ops[self.writer[m]]
            for read in self.plan.reads(producer):
                self.readers[read.map] = self.readers[read.map] - {self.writer[m]} | {i}

    def attach(self, i: int, lateness: Sequence[float]) -> None:
        """Make op i the epilogue of the latest of the products that only it reads."""
        op = self.ops[i]
        if not isinstance(op, MapOp) or op.phase != WHOLE:
            return
        if any(ins.fn == "load" and stride_of(ins.refs) is None for ins in op.code):
            return
        found: list[tuple[float, int, ConvOp]] = []
        for m in self.absorbable(i, op):
            producer = self.ops.get(self.writer[m])
            in_order = all(stride_of(ins.refs) == 1 for ins in op.code if _reads(ins, self.plan.maps[m]))
            alone = isinstance(producer, ConvOp) and not producer.code and producer.phase == WHOLE
            if isinstance(producer, ConvOp) and alone and in_order:
                found.append((lateness[m], m, producer))
        if not found:
            return
        _, m, conv = max(found, key=lambda f: f[:2])
        source = self.plan.maps[m]
        code = tuple(
            replace(ins, fn="product", refs=ins.refs - source.first) if _reads(ins, source) else ins
            for ins in op.code
        )
        del self.ops[self.writer[m]]
        self.ops[i] = replace(conv, out=op.out, code=code)


def _reads(ins: Instruction, m: Map) -> int:
    """How many channels a load takes from the map."""
    if ins.fn != "load":
        return 0
    return int(((ins.refs >= m.first) & (ins.refs < m.first + m.channels)).sum())


def _inline(code: Code, m: Map, producer: Code) -> Code:
    """`code` with every load of map `m` replaced by the expression that writes it."""
    result: list[Instruction] = []
    place: list[int] = []
    for ins in code:
        if _reads(ins, m):
            base = len(result)
            for inner in producer:
                chosen = inner.select(ins.refs - m.first)
                result.append(_moved(chosen, [base + a for a in inner.args]))
        else:
            result.append(_moved(ins, [place[a] for a in ins.args]))
        place.append(len(result) - 1)
    return tuple(result)


def _moved(ins: Instruction, args: Sequence[int]) -> Instruction:
    """The same with other registers."""
    return Instruction(ins.fn, tuple(args), ins.refs, ins.offset, ins.value, ins.flat)
