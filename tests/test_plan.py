"""The passes keep every result, and do what they are for."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_networks import FIXED, Fixed, fixed
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import SPECS, Case, Spec, case_of, logits_of, loud, recompile

import pixelfast as pf
from pixelfast import passes
from pixelfast import plan as P
from pixelfast import readiness as R
from pixelfast import schedule as S
from pixelfast.capture import capture
from pixelfast.lower import lower
from pixelfast.models.base import MaskedConv2d
from pixelfast.sharing import share

every_network = pytest.mark.parametrize("case_", [*FIXED, *SPECS], ids=str)


def get(case_: Fixed | Spec) -> Case:
    return fixed(case_) if isinstance(case_, Fixed) else case_of(case_)


def fuse(plan: P.Plan, order: R.Order) -> P.Plan:
    return passes.fuse(plan, R.lateness(plan, order))


def ops_of(plan: P.Plan, where: str) -> list[P.Op]:
    return [op for op in plan.ops if op.where == where]


# --- results ----------------------------------------------------------------------------------------------


@every_network
def test_fusing_changes_no_bit(case_):
    case = get(case_)
    order = case.order("raster")
    plain = recompile(case.sampler("raster", "reference"), S.schedule(case.plan, order), backend="reference")
    a = plain.sample(2, seed=3, **case.labels(2))
    b = case.sampler("raster", "reference").sample(2, seed=3, **case.labels(2))
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.log_prob, b.log_prob)
    assert plain.multiply_adds == case.sampler("raster", "reference").multiply_adds


@every_network
@pytest.mark.parametrize(("backend", "alone"), [("reference", False), ("cpu", False), ("cpu", True)])
def test_sharing_changes_no_bit(case_, backend, alone):
    case = get(case_)
    order = case.order("wavefront")
    plan = share(fuse(case.plan, order), alone=alone, least=1)
    plan.verify()
    whole = case.sampler("wavefront", "reference")
    parted = recompile(whole, S.schedule(plan, order), backend=backend)
    a, b = (s.sample(2, seed=3, **case.labels(2)) for s in (whole, parted))
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.log_prob, b.log_prob)
    assert parted.multiply_adds == whole.multiply_adds


def test_colours_share_what_they_read_elsewhere():
    """Four taps of 64 channels, for the products of all three colours; of one colour there is nothing to share."""
    by_colours = {}
    for colours in (1, 3):
        torch.manual_seed(0)
        model = pf.models.PixelCNN(channels=colours, hidden=64, layers=1, levels=4).eval()
        sampler = pf.compile(model, shape=(colours, 4, 5), backend="reference")
        by_colours[colours] = ops_of(sampler.schedule.plan, "layers.0")
    assert [len(op.start) for op in by_colours[1]] == [0]
    shared, *parts = by_colours[3]
    assert shared.offsets == ((-1, -1), (-1, 0), (-1, 1), (0, -1))
    assert shared.products == sum(len(op.start) for op in parts) == 64
    assert all(op.offsets == ((0, 0), (0, 1), (1, -1), (1, 0), (1, 1))[: len(op.offsets)] for op in parts)


def test_devices_sum_what_is_read_elsewhere_before_a_position_has_its_turn():
    """All layers but the first, which read the pixel drawn last, before anything that waits for another op."""
    torch.manual_seed(0)
    model = pf.models.PixelCNN(hidden=64, layers=3, levels=4).eval()
    schedule = pf.compile(model, shape=(1, 6, 7), backend="emulated").schedule
    plan = schedule.plan
    assert [len(op.start) for op in ops_of(plan, "layers.1")] == [0, 64]
    by_step: dict[int, list[str]] = {}
    for step, i, _ in schedule.launches():
        op = plan.ops[i]
        begun = isinstance(op, P.ConvOp) and plan.maps[op.out].name.endswith(".shared")
        by_step.setdefault(step, []).append("shared" if begun else type(op).__name__)
    middle = by_step[schedule.count // 2]
    assert middle[:4] == ["InputOp", "shared", "shared", "shared"]
    assert "shared" not in middle[4:]


@pytest.mark.parametrize("which", FIXED, ids=str)
def test_splitting_keeps_the_logits_and_pruning_their_bits(which):
    case = fixed(which)
    module, shape = case.module, case.shape
    lowered = lower(capture(module, shape=shape, levels=module.levels), module.head)
    lowered.plan.verify()
    sampler = copy.copy(case.sampler("raster", "reference"))
    images = torch.randint(0, module.levels, (2, *shape), generator=torch.Generator().manual_seed(1))
    found = []
    for plan in (passes.split(lowered.plan), case.plan):
        sampler.schedule = S.schedule(plan, R.known(shape))
        found.append(logits_of(sampler, images))
    exact = copy.deepcopy(module).double()(images).detach().permute(0, 2, 3, 4, 1)
    np.testing.assert_allclose(found[0], exact.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found[1], found[0])


# --- split ------------------------------------------------------------------------------------------------


@every_network
def test_channels_of_a_map_depend_on_the_same(case_):
    plan = get(case_).plan
    plan.verify()
    for op in plan.ops:
        if isinstance(op, P.ConvOp):
            sources = plan.map_of(op.refs)
            for m in np.unique(sources):
                alive = (op.weight[:, sources == m] != 0).any(axis=1)  # (taps, products)
                assert (alive == alive[:, :1]).all()
            assert (np.diff(op.refs) > 0).all() or len(set(op.refs.tolist())) < len(op.refs)
        if isinstance(op, P.MapOp) and not plan.name_of(op).startswith("head."):
            for ins in op.code:
                if ins.fn == "load":
                    assert len(np.unique(plan.map_of(ins.refs))) == 1


@every_network
def test_parts_of_a_map_lie_side_by_side(case_):
    plan = get(case_).plan
    taken: dict[int, set[int]] = {}
    for m in plan.maps:
        own = set(range(m.home_channel, m.home_channel + m.channels))
        assert not own & taken.setdefault(m.home, set())
        taken[m.home] |= own
        assert (plan.maps[m.home].height, plan.maps[m.home].width) == (m.height, m.width)


class Interleaved(nn.Module):
    """Channel i belongs to colour i % 3 everywhere, the head's logits too."""

    def __init__(self, hidden: int = 6, levels: int = 3) -> None:
        super().__init__()
        self.head, self.levels, self.channels = pf.heads.Categorical(levels), levels, 3
        of = torch.arange(30) % 3

        def mask(outputs: int, inputs: int, strict: int) -> Tensor:
            return (of[None, :inputs] + strict <= of[:outputs, None])[:, :, None, None]

        self.first = MaskedConv2d(3, hidden, mask=mask(hidden, 3, 1))
        self.above = nn.Conv2d(3, hidden, (1, 3), padding=(0, 1), bias=False)
        self.mix = MaskedConv2d(hidden, hidden, mask=mask(hidden, hidden, 0))
        self.last = MaskedConv2d(hidden, 3 * levels, mask=mask(3 * levels, hidden, 0))

    def forward(self, images):
        x = images.to(self.last.weight.dtype) - 1
        h = torch.tanh(self.first(x) + self.above(F.pad(x, (0, 0, 1, -1))))
        return self.last(torch.tanh(self.mix(h))).view(-1, self.levels, 3, *images.shape[2:])


@functools.cache
def interleaved() -> Case:
    torch.manual_seed(0)
    module = Interleaved()
    return Case(loud(module, module.last, (3, 3, 4)), (3, 3, 4))


def test_interleaved_colours_are_found():
    case = interleaved()
    sizes = {
        name: [case.plan.maps[op.out].channels for op in ops_of(case.plan, name)] for name in ("mix", "last")
    }
    assert sizes == {"mix": [2, 2, 2], "last": [3, 3, 3]}
    out = case.sampler("raster", "reference").sample(2, seed=1)
    torch.testing.assert_close(out.log_prob.double(), case.exact_log_prob(out.images), rtol=1e-5, atol=1e-4)
    again = case.sampler("wavefront", "cpu").sample(2, seed=1)
    assert torch.equal(again.images, out.images)
    assert torch.equal(again.log_prob, out.log_prob)
    pixels, hidden = 12, 6
    first = sum(colour * 2 for colour in range(3)) * pixels
    above = 3 * 3 * hidden * pixels
    mix = sum(2 * 2 * (colour + 1) for colour in range(3)) * pixels
    last = sum(3 * 2 * (colour + 1) for colour in range(3)) * pixels
    assert case.sampler().multiply_adds == first + above + mix + last


# --- heads ------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """Logits of 4 levels put together from two convolutions, in some way."""

    WAYS = ("one after the other", "swapped", "nested", "one twice", "zeros", "shifted")

    def __init__(self, way: str) -> None:
        super().__init__()
        self.head, self.levels, self.channels, self.way = pf.heads.Categorical(4), 4, 1, way
        self.first = nn.Conv2d(1, 3, (1, 2))
        self.a, self.last = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, images):
        x = images.to(self.first.weight.dtype)
        h = torch.tanh(self.first(F.pad(x, (2, -1))))
        a, b = self.a(h), self.last(h)
        parts = {
            "one after the other": (a, b),
            "swapped": (b, a),
            "nested": (a[:, :1], b, a[:, 1:]),
            "one twice": (a, b[:, :1], b[:, :1]),
            "zeros": (F.pad(a, (0, 0, 0, 0, 1, 1)),),
            "shifted": (a, F.pad(b, (0, 0, 1, -1))),
        }[self.way]
        return torch.cat(parts, 1)[:, :, None]


@pytest.mark.parametrize("way", Heads.WAYS)
def test_parameters_of_a_head_may_come_from_anywhere(way):
    torch.manual_seed(0)
    module = Heads(way)
    case = Case(loud(module, module.last, (1, 2, 3)), (1, 2, 3))
    out = case.sampler("raster", "reference").sample(3, seed=1)
    torch.testing.assert_close(out.log_prob.double(), case.exact_log_prob(out.images), rtol=1e-5, atol=1e-4)
    again = case.sampler("raster", "cpu").sample(3, seed=1)
    assert torch.equal(again.images, out.images)
    assert torch.equal(again.log_prob, out.log_prob)


# --- prune ------------------------------------------------------------------------------------------------


class Waste(nn.Module):
    """A branch that nothing reads, one that is read through zeros, and channels that are thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.levels, self.channels = pf.heads.Bernoulli(), 2, 1
        self.first = nn.Conv2d(1, 8, (1, 2))
        self.unread = nn.Conv2d(8, 8, 1)
        self.zeroed = nn.Conv2d(8, 2, 1)
        self.wide = nn.Conv2d(8, 6, 1)
        self.last = nn.Conv2d(5, 1, 1)

    def forward(self, images):
        x = images.to(self.last.weight.dtype)
        h = self.first(F.pad(x, (2, -1)))[:, :5]
        h = F.pad(h, (0, 0, 0, 0, 0, 3))
        self.unread(h)
        kept = self.wide(h)[:, 1::2]
        return self.last(torch.cat([kept, self.zeroed(h)], 1))


def test_what_reaches_no_head_is_dropped():
    torch.manual_seed(0)
    module = Waste()
    with torch.no_grad():
        module.last.weight[:, 3:] = 0
        module.wide.weight[1::2, 4] = 0  # so channel 4 of `first` is seen by nothing that counts
    sampler = pf.compile(module, shape=(1, 2, 3), backend="reference")
    plan = sampler.schedule.plan
    assert not ops_of(plan, "unread")
    assert not ops_of(plan, "zeroed")
    assert sampler.multiply_adds == 6 * (2 * 4 + 4 * 3 + 3)
    out = sampler.sample(2, seed=0)
    exact = module.head.log_prob(copy.deepcopy(module).double()(out.images.long()), out.images)
    torch.testing.assert_close(out.log_prob.double(), exact.detach(), rtol=1e-5, atol=1e-4)


# --- fuse -------------------------------------------------------------------------------------------------


@every_network
@pytest.mark.parametrize("order", ["raster", "wavefront"])
def test_fused_plans_hold_no_expression_that_could_be_inlined(case_, order):
    case = get(case_)
    fused = fuse(case.plan, case.order(order))
    fused.verify()
    readers: dict[int, list[P.Op]] = {}
    for op in fused.ops:
        for read in fused.reads(op):
            readers.setdefault(read.map, []).append(op)
    for op in fused.ops:
        if not isinstance(op, P.MapOp):
            continue
        (first, *more) = readers[op.out]
        here = all(read.dy == read.dx == 0 for read in fused.reads(first) if read.map == op.out)
        assert more or not isinstance(first, P.MapOp) or not here or mixes(fused, first, op.out)


def mixes(plan: P.Plan, op: P.MapOp, m: int) -> bool:
    loads = [plan.map_of(ins.refs) for ins in op.code if ins.fn == "load"]
    return any((sources == m).any() and (sources != m).any() for sources in loads)


def test_the_latest_product_takes_the_expression():
    """In a gated layer the link from the vertical stack is done a row ahead, the horizontal stack is not."""
    schedule = case_of(SPECS[6]).sampler("raster", "reference").schedule
    (horizontal,) = ops_of(schedule.plan, "layers.1.horizontal")
    assert [ins.fn for ins in horizontal.code if ins.fn not in ("load", "product")] == ["add", "add", "gate"]
    (link,) = ops_of(schedule.plan, "layers.1.link")
    assert not link.code


def test_gates_are_one_function():
    """Where tanh or sigmoid is used for something else, too, or two of a kind meet, they stay."""

    def gated(*code):
        return [(ins.fn, ins.args) for ins in passes._with_gates(tuple(P.Instruction(*ins) for ins in code))]

    one = [
        ("load", ()),
        ("load", ()),
        ("sigmoid", (0,)),
        ("neg", (1,)),
        ("tanh", (3,)),
        ("mul", (2, 4)),
        ("abs", (5,)),
    ]
    assert gated(*one) == [("load", ()), ("load", ()), ("neg", (1,)), ("gate", (2, 0)), ("abs", (3,))]
    assert gated(*one[:-1], ("add", (5, 4))) == [*one[:-1], ("add", (5, 4))]
    same = [("load", ()), ("tanh", (0,)), ("tanh", (0,)), ("mul", (1, 2))]
    assert gated(*same) == same
    square = [("load", ()), ("tanh", (0,)), ("mul", (1, 1))]
    assert gated(*square) == square


# --- verify -----------------------------------------------------------------------------------------------


def test_verify_finds_damage():
    plan = case_of(SPECS[0]).plan
    i = next(i for i, op in enumerate(plan.ops) if op.where == "mix")
    with pytest.raises(AssertionError, match="before it is written"):
        replace(plan, ops=plan.ops[:i] + plan.ops[i + 1 :]).verify()
    with pytest.raises(AssertionError, match="mix is written twice"):
        replace(plan, ops=(*plan.ops[: i + 1], *plan.ops[i:])).verify()
    with pytest.raises(AssertionError, match="before it is written"):
        replace(plan, ops=plan.ops[::-1]).verify()
    first = next(op for op in plan.ops if op.where == "first")
    taps = replace(first, offsets=first.offsets[::-1])
    with pytest.raises(AssertionError):
        replace(plan, ops=tuple(taps if op is first else op for op in plan.ops)).verify()


@pytest.mark.parametrize(
    ("refs", "stride"),
    [([5], 1), ([5, 6, 7], 1), ([5, 5, 5], 0), ([5, 7], None), ([7, 6], None), ([5, 6, 6], None),
     ([P.ZERO], 0), ([P.ZERO, P.ZERO], 0), ([P.ZERO, 0], None), ([0, P.ZERO], None)],
)  # fmt: skip
def test_stride_of(refs, stride):
    assert P.stride_of(np.array(refs)) == stride


def test_plans_print_as_a_table():
    text = str(case_of(SPECS[0]).plan)
    assert len(text.splitlines()) == len(case_of(SPECS[0]).plan.ops)
    assert "layers.1" in text
    assert "(-1,+1)" in text
