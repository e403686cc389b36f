"""Programs: what is encoded is decoded, and memory holds what is read when it is read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_networks import FIXED, Fixed, fixed
from zoo import ORDERS, SPECS, Case, Spec, case_of, pyramid

import pixelfast as pf
from pixelfast import plan as P
from pixelfast import program
from pixelfast import readiness as R
from pixelfast import schedule as S

every_network = pytest.mark.parametrize("case_", [*FIXED, *SPECS, "pyramid"], ids=str)
every_order = pytest.mark.parametrize("order", [*ORDERS, "known"])


def get(case_: Fixed | Spec | str) -> Case:
    if case_ == "pyramid":
        return pyramid()
    return fixed(case_) if isinstance(case_, Fixed) else case_of(case_)


def schedule_of(case: Case, order: str) -> S.Schedule:
    return S.schedule(case.plan, R.known(case.shape)) if order == "known" else case.sampler(order).schedule


# --- memory -----------------------------------------------------------------------------------------------


class Memory:
    """The arena, as labels: which channel of which position of which map each float holds."""

    def __init__(self, schedule: S.Schedule) -> None:
        self.plan = schedule.plan
        self.assembler = program._Assembler(schedule)
        self.assembler.place_maps()
        self.held = np.full(self.assembler.arena_floats, -1, np.int64)

    def stored(self, m: int) -> bool:
        return self.assembler.buffers[self.assembler.place[m][0]].space == "arena"

    def places(self, m: int, positions: np.ndarray) -> np.ndarray:
        """The indices of all channels of a map at some positions: int (n, channels)."""
        buffer, channel = self.assembler.place[m]
        b = self.assembler.buffers[buffer]
        y, x = positions.T
        at = b.offset + (y % b.rows) * b.row_stride + (x % b.columns) * b.col_stride + channel
        return at[:, None] + np.arange(self.plan.maps[m].channels)

    def labels(self, m: int, positions: np.ndarray) -> np.ndarray:
        number = positions[:, 0] * 1000 + positions[:, 1]
        return (number * 1000 + m)[:, None] * 1000 + np.arange(self.plan.maps[m].channels)


@every_network
@every_order
def test_what_is_read_is_still_there(case_, order):
    schedule = schedule_of(get(case_), order)
    plan, memory = schedule.plan, Memory(schedule)
    followers = memory.assembler.followers
    for _, i, positions in schedule.launches():
        op = plan.ops[i]
        if i in followers.values():
            continue  # it runs with its convolution
        reads = []
        for read in plan.reads(op):
            m = plan.maps[read.map]
            at = positions * read.stride + (read.dy, read.dx)
            at = at[((at >= 0) & (at < (m.height, m.width))).all(1)]
            if memory.stored(read.map):
                reads.append((memory.places(read.map, at), memory.labels(read.map, at)))
        for where, what in reads:
            assert (memory.held[where] == what).all(), plan.name_of(op)
        if isinstance(op, P.HeadOp):
            continue
        rows, columns = plan.written(op)
        written = positions * (rows.step, columns.step) + (rows.start, columns.start)
        for out in (op.out, *(plan.ops[j].out for j in [followers.get(i)] if j is not None)):
            memory.held[memory.places(out, written)] = memory.labels(out, written)
        for where, what in reads:  # no position of a launch overwrites what another reads
            assert (memory.held[where] == what).all(), plan.name_of(op)


rings = st.builds(
    lambda home, rows, columns, channels, first, length: S.Ring(
        home, rows, columns, channels, first, first + length
    ),
    st.just(0),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 20),
    st.integers(0, 30),
    st.integers(0, 12),
)


@given(st.lists(rings, max_size=12))
def test_rings_in_use_together_do_not_overlap(found):
    found = [S.Ring(i, r.rows, r.columns, r.channels, r.first, r.last) for i, r in enumerate(found)]
    offsets, total = program.allocate(found)
    spans = {r.home: (offsets[r.home], offsets[r.home] + r.floats) for r in found}
    assert all(start % 16 == 0 and end <= total for start, end in spans.values())
    for a, b in itertools.combinations(found, 2):
        if a.first <= b.last and b.first <= a.last:
            (a0, a1), (b0, b1) = spans[a.home], spans[b.home]
            assert a1 <= b0 or b1 <= a0
    busiest = max((sum(r.floats for r in found if r.first <= t <= r.last) for t in range(45)), default=0)
    assert busiest <= total <= sum(-(-r.floats // 16) * 16 for r in found)


def test_scoring_shares_memory_between_layers():
    """All at once, a layer's maps are not needed once the next layer is done."""
    sampler = case_of(SPECS[6]).sampler()
    assembled, _ = sampler._scorer
    floats = sum(m.channels * m.height * m.width for m in sampler._plan.maps)
    assert assembled.arena_floats < floats / 2


# --- words ------------------------------------------------------------------------------------------------


@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=20))
def test_runs_cover_the_positions_in_order(positions):
    points = np.array(sorted(positions))
    runs = program.progressions(points)
    covered = [(y + k * dy, x + k * dx) for y, x, n, dy, dx in runs for k in range(n)]
    assert covered == sorted(positions)
    assert len(runs) <= len(positions)


def test_rows_and_diagonals_are_one_run():
    row = np.array([[2, x] for x in range(3, 9)])
    assert program.progressions(row) == [[2, 3, 6, 0, 1]]
    diagonal = np.array([[y, 10 - 4 * y] for y in range(3)])
    assert program.progressions(diagonal) == [[0, 10, 3, 1, -4]]
    rows = np.array([[y, x] for y in range(2) for x in range(3)])
    assert program.progressions(rows) == [[0, 0, 3, 0, 1], [1, 0, 3, 0, 1]]


@every_network
@every_order
def test_what_is_decoded_is_what_was_encoded(case_, order):
    schedule = schedule_of(get(case_), order)
    encoded = program.assemble(schedule)
    encoded.verify()
    assert encoded.words.dtype == np.int32
    assert encoded.data.dtype == np.float32
    d, plan = encoded.decoded, schedule.plan
    assert (d.colours, d.height, d.width, d.levels) == (*plan.shape, plan.levels)
    followers = set(program.followers(schedule).values())
    skipped = [
        isinstance(op, P.ConstantOp | P.ConditionOp) or i in followers for i, op in enumerate(plan.ops)
    ]
    computed = [op for op, skip in zip(plan.ops, skipped, strict=True) if not skip]
    kinds = [
        op.kind if isinstance(op, P.HeadOp) else type(op).__name__.removesuffix("Op").lower()
        for op in computed
    ]
    names = [name for name, _ in itertools.groupby(r.name for r in d.ops)]  # a map may take several records
    assert names == [name for name, _ in itertools.groupby(kinds)]
    convs = [op for op in computed if isinstance(op, P.ConvOp)]
    for op, record in zip(convs, (r for r in d.ops if r.name == "conv"), strict=True):
        depth = sum(tap[2] for tap in record.taps)
        assert depth * op.products == schedule.weights[plan.ops.index(op)]
        assert record.fields["product_channels"] == op.products
        offsets = [tap[3:] for tap in record.taps]
        assert offsets == sorted(offsets)  # from the earliest position to the latest
        start = record.fields["weight"]
        words = encoded.data[start : start + depth * op.products]
        assert np.count_nonzero(words) == np.count_nonzero(op.weight)
    launches = [launch for launch in d.launches if launch is not None]
    positions = sum(n for _, runs in launches for _, _, n, _, _ in runs)
    assert positions >= sum(len(p) for _, i, p in schedule.launches() if not skipped[i])
    assert d.launches[-1] is None
    assert sum(launch is None for launch in d.launches) == encoded.steps


def test_programs_print():
    text = str(case_of(SPECS[3]).sampler().program)
    assert "words" in text.splitlines()[0]
    assert "buffer   0: Buffer(space='arena'" in text
    assert "name='categorical'" in text


def test_too_large_a_program_is_refused(monkeypatch):
    monkeypatch.setattr(program, "allocate", lambda rings: ({r.home: 0 for r in rings}, 2**31))
    with pytest.raises(
        ValueError, match=r"\[compile\] the program needs 8\.6 GB in one table; at most 8\.6 GB are"
    ):
        program.assemble(case_of(SPECS[0]).sampler().schedule)


def test_a_map_of_what_a_convolution_writes_is_computed_with_it():
    torch.manual_seed(0)
    model = pf.models.PixelCNN(levels=4, hidden=6, layers=2).eval()
    sampler = pf.compile(model, shape=(1, 5, 6))
    plan = sampler.schedule.plan
    found = program.followers(sampler.schedule)
    relus = [i for i, op in enumerate(plan.ops) if isinstance(op, P.MapOp)]
    assert relus
    assert sorted(found.values()) == relus
    kinds = [op.name for op in sampler.program.decoded.ops]
    assert "map" not in kinds
    stores = [fn for op in sampler.program.decoded.ops for fn, _ in op.code if fn == "store"]
    assert len(stores) == len(relus)
    assert len(sampler.program.names) == len(kinds)


def test_a_map_of_parts_of_what_a_convolution_writes_is_not():
    """The vertical stack's gates read halves, and their convolutions' own results are read besides."""
    model = pf.models.GatedPixelCNN(levels=2, hidden=4, layers=2).eval()
    schedule = pf.compile(model, shape=(1, 5, 6), order="raster").schedule
    assert any(isinstance(op, P.MapOp) for op in schedule.plan.ops)
    assert program.followers(schedule) == {}
