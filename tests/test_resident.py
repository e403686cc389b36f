"""Weights in shared memory, and products by tensor cores, on the emulation of a GPU: which, and that no bit changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from handwritten import attending, chain, everything, run

import pixelfast as pf
from pixelfast import _emulated

SHARINGS = list(itertools.product((1, 2, 3), (1, 2, 5), (0, 500, 3000, None)))  # team, chunk, resident bytes


@pytest.fixture
def device():
    """What the device has may be changed for a test."""
    yield _emulated
    _emulated.set_shared_nbytes(4096)
    _emulated.set_capability(90)
    _emulated.set_blocks(3)
    _emulated.set_all_shared_nbytes(2**64 - 1)


def alike(program, tiny, want, **options):
    """Every way to share a run gives the same bits."""
    for team, chunk, resident in SHARINGS:
        sharing = {"team": team, "chunk": chunk, "resident_nbytes": -1 if resident is None else resident}
        got = run(program, tiny, len(want[0]), **sharing, **options)
        assert (got[0] == want[0]).all(), sharing
        assert (got[1] == want[1]).all(), sharing


@pytest.mark.parametrize("shared_nbytes", [0, 999, 4096, 200_000])
@pytest.mark.parametrize("tiny", [chain((1, 3, 4), 5, 19), everything(), attending()])
def test_fp32_has_the_bits_of_the_cpu(tiny, shared_nbytes, device):
    device.set_shared_nbytes(shared_nbytes)
    values = np.random.default_rng(3).normal(size=(5, tiny.condition)).astype(np.float32)
    options = {"seed": 1, "conditions": values} if tiny.condition else {"seed": 1}
    alike(tiny.load("emulated"), tiny, run(tiny.load(), tiny, 5, **options), **options)


@pytest.mark.parametrize("capability", [75, 90])
@pytest.mark.parametrize("tiny", [chain((1, 3, 4), 5, 19), everything(), attending()])
def test_bf16_has_the_same_bits_however_it_is_shared(tiny, capability, device):
    device.set_capability(capability)
    device.set_shared_nbytes(8000)
    values = np.random.default_rng(3).normal(size=(5, tiny.condition)).astype(np.float32)
    options = {"seed": 1, "conditions": values} if tiny.condition else {"seed": 1}
    program = tiny.load("emulated", "bf16")
    alike(program, tiny, run(program, tiny, 5, **options), **options)


@pytest.mark.parametrize("hidden", [22, 76])  # taps of more than four steps, too
def test_tensor_cores_sum_what_a_thread_sums(hidden, device):
    """Of the same rounded numbers, here in the same order; a GPU's is another."""
    torch.manual_seed(0)
    model = pf.models.GatedPixelCNN(channels=3, hidden=hidden, layers=2, levels=5).eval()
    images = torch.randint(0, 5, (4, 3, 6, 7))
    scores, cycles = [], []
    for capability in (75, 90):
        device.set_capability(capability)
        sampler = pf.compile(model, shape=(3, 6, 7), backend="emulated", precision="bf16")
        scores.append(sampler.log_prob(images, per_pixel=True))
        cycles.append(sampler.explain(96).crews[0].cycles)
    assert torch.equal(*scores)
    assert cycles[1] < cycles[0]


def crew(device, shared_nbytes, team, precision="fp32", **options):
    device.set_shared_nbytes(shared_nbytes)
    torch.manual_seed(0)
    model = pf.models.PixelCNN(hidden=16, layers=2, levels=4).eval()
    sampler = pf.compile(model, shape=(1, 4, 5), backend="emulated", precision=precision)
    return sampler._runtime.estimates(n=2, team=team, **options)[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_as_many_weights_as_fit(device, precision):
    none, some, most = (crew(device, n, 1, precision) for n in (0, 3000, 200_000))
    assert 0 == none["resident_nbytes"] < some["resident_nbytes"] <= 3000
    assert some["resident_nbytes"] < most["resident_nbytes"] == most["weights_nbytes"]
    assert none["cycles"] > some["cycles"] > most["cycles"]
    of_two = crew(device, 3000, 2, precision)
    assert some["resident_nbytes"] < of_two["resident_nbytes"] <= 6000
    forced = crew(device, 200_000, 1, precision, resident_nbytes=3000)
    assert forced["resident_nbytes"] == some["resident_nbytes"]


@pytest.mark.parametrize("capability", [75, 90])
def test_weights_are_held_once(device, capability):
    """In bf16 as halves alone."""
    device.set_capability(capability)
    torch.manual_seed(0)
    model = pf.models.PixelCNN(hidden=64, layers=2, levels=4).eval()
    exact, half = (
        pf.compile(model, shape=(1, 4, 5), backend="emulated", precision=p).explain(1)
        for p in ("fp32", "bf16")
    )
    weights, halves = (e.crews[0].weights_nbytes for e in (exact, half))
    assert halves < half.held_nbytes < weights < exact.held_nbytes
    less = exact.held_nbytes - half.held_nbytes
    assert less == pytest.approx(weights - halves, abs=64)  # padding behind the data


def test_weights_are_far_where_such_blocks_cannot_run_at_once(device):
    device.set_all_shared_nbytes(5000)
    assert crew(device, 4096, 1)["teams"] == 1
    assert crew(device, 4096, 2)["resident_nbytes"] == 0
    assert crew(device, 4096, 2)["barrier"] == "cluster"


def test_teams_that_the_device_does_not_run(device):
    tiny = chain((1, 3, 4), 5, 19)
    program = tiny.load("emulated")
    want = run(program, tiny, 2, team=3)
    device.set_blocks(2)
    with pytest.raises(ValueError, match=r"\[cuda\] an emulation .* cannot run a team of 3 blocks"):
        run(program, tiny, 2, team=3)
    assert {c["blocks"] for c in program.estimates(n=2)} == {1, 2}
    assert (run(program, tiny, 2)[0] == want[0]).all()


def test_how_much_is_resident_can_be_said(device):
    torch.manual_seed(0)
    sampler = pf.compile(
        pf.models.PixelCNN(hidden=8, layers=1, levels=3).eval(), shape=(1, 3, 4), backend="emulated"
    )
    want = sampler.sample(2)
    for resident in (0, 700):
        got = sampler.sample(2, resident_nbytes=resident)
        assert torch.equal(got.images, want.images)
        assert torch.equal(got.log_prob, want.log_prob)
        assert torch.equal(sampler.log_prob(got.images, resident_nbytes=resident), got.log_prob)
    with pytest.raises(ValueError, match=r"\[sample\] resident_nbytes must be in \[0, 2147483647\], got -1"):
        sampler.sample(2, resident_nbytes=-1)
    with pytest.raises(ValueError, match=r"\[explain\] resident_nbytes must be -1, .*, got -2"):
        sampler._runtime.estimates(n=1, resident_nbytes=-2)
    text = str(sampler.explain(2))
    assert "resident weights B" in text
    assert "0 of 2,400" in text
