"""The truth ladder: model, reference, scalar, vectors. The first step is within rounding, the rest exact."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from random_networks import networks
from torch import Tensor
from torch.nn import functional as F
from zoo import ISAS, ON_A_GPU, ORDERS, SPECS, TOLERANCE, Case, Spec, case_of, dependence, labels_of

import pixelfast as pf
from pixelfast import _cpu
from pixelfast.models import base

SEED = 11
RUNGS = (
    [pytest.param("reference", None, id="reference")]
    + [pytest.param("cpu", *p.values, id=p.values[0], marks=p.marks) for p in ISAS]
    + [pytest.param("emulated", None, id="emulated"), pytest.param("cuda", None, id="cuda", marks=ON_A_GPU)]
)

every_model = pytest.mark.parametrize("spec", SPECS, ids=str)
every_order = pytest.mark.parametrize("order", ORDERS)
every_rung = pytest.mark.parametrize(("backend", "isa"), RUNGS)
every_isa = pytest.mark.parametrize("isa", ISAS)


@functools.cache
def by_reference(spec: Spec, n: int, **options: Any) -> pf.Sample:
    """Images by the reference runtime in raster order."""
    case = case_of(spec)
    return case.sampler("raster", "reference").sample(n, **{"seed": SEED} | options, **case.labels(n))


def anchor(spec: Spec) -> pf.Sample:
    return by_reference(spec, 3)


def assert_same(got: pf.Sample, want: pf.Sample) -> None:
    got = got.cpu()
    assert torch.equal(got.images, want.images)
    assert torch.equal(got.log_prob, want.log_prob)


def assert_near(case: Case, out: pf.Sample, backend: str) -> None:
    exact = case.exact_log_prob(out.images)
    torch.testing.assert_close(out.log_prob.double(), exact, **TOLERANCE[backend, "float32"])


# --- the rungs --------------------------------------------------------------------------------------------


@every_model
def test_reference_agrees_with_the_model(spec):
    case = case_of(spec)
    assert_near(case, anchor(spec), "reference")
    assert anchor(spec).images.shape == (3, *spec.shape)


@every_model
def test_the_distributions_are_not_flat(spec):
    case = case_of(spec)
    images = case.sampler().sample(16, seed=SEED, **case.labels(16)).images
    with torch.no_grad():
        logits = case.module.head.logits(case.module(images.long(), **case.labels(16)))
    assert logits.softmax(1).max(1).values.mean() > 1.1 / spec.levels


@every_model
@every_order
@every_rung
def test_every_rung_draws_the_same_images(spec, order, backend, isa):
    case = case_of(spec)
    sampler = case.sampler(order, backend, isa)
    assert_same(sampler.sample(3, seed=SEED, **case.labels(3)), anchor(spec))


@every_model
@every_rung
def test_scoring_gives_the_bits_of_sampling(spec, backend, isa):
    case = case_of(spec)
    want = anchor(spec)
    sampler = case.sampler("wavefront", backend, isa)
    assert torch.equal(sampler.log_prob(want.images, **case.labels(3)).cpu(), want.log_prob)


@every_model
def test_pixels_are_scored_alike_on_every_rung(spec):
    case = case_of(spec)
    images = torch.randint(0, spec.levels, (2, *spec.shape), generator=torch.Generator().manual_seed(4))
    want = case.sampler("raster", "reference").log_prob(images, per_pixel=True, **case.labels(2))
    assert want.shape == images.shape
    for isa in _cpu.isas():
        got = case.sampler("raster", "cpu", isa).log_prob(images, per_pixel=True, **case.labels(2))
        assert torch.equal(got, want)


@every_isa
@pytest.mark.parametrize("spec", [SPECS[2], SPECS[3]], ids=str)
@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.6}, {"temperature": 3.0, "top_k": 2}, {"top_p": 0.7}, {"top_k": 3, "top_p": 0.5}],
    ids=str,
)
def test_options_give_the_same_images_on_every_rung(spec, isa, options):
    case = case_of(spec)
    got = case.sampler("wavefront", "cpu", isa).sample(2, seed=SEED, **options, **case.labels(2))
    assert_same(got, by_reference(spec, 2, **options))


@every_isa
@pytest.mark.parametrize("seed", [0, 2**32, 2**64 - 1])
@pytest.mark.parametrize("first_index", [0, 2**32 - 1, 2**64 - 4])
def test_seeds_and_indices_of_64_bits(seed, first_index, isa):
    spec = SPECS[1]
    place = {"seed": seed, "first_index": first_index}
    assert_same(
        case_of(spec).sampler("raster", "cpu", isa).sample(2, **place), by_reference(spec, 2, **place)
    )


# --- batches, chunks, threads -----------------------------------------------------------------------------


@functools.cache
def batch_of_64(spec: Spec) -> pf.Sample:
    case = case_of(spec)
    return case.sampler("raster", "cpu", "scalar").sample(64, seed=SEED, threads=1, **case.labels(64))


@every_model
@every_isa
@pytest.mark.parametrize(
    ("n", "first", "threads", "chunk"),
    [(64, 0, 2, None), (64, 0, 1, 5), (7, 0, 2, 1), (7, 20, 1, None), (1, 0, 2, 4), (1, 63, 1, None)],
)
def test_an_image_does_not_depend_on_what_is_drawn_with_it(spec, isa, n, first, threads, chunk):
    case, whole = case_of(spec), batch_of_64(spec)
    order = ORDERS[(n + first) % 2]
    out = case.sampler(order, "cpu", isa).sample(
        n, seed=SEED, first_index=first, threads=threads, chunk=chunk, **case.labels(n, first)
    )
    assert_same(out, pf.Sample(whole.images[first : first + n], whole.log_prob[first : first + n]))
    scored = case.sampler(order, "cpu", isa).log_prob(
        out.images, threads=threads, chunk=chunk, **case.labels(n, first)
    )
    assert torch.equal(scored, out.log_prob)


@every_model
def test_the_large_batch_holds_the_anchor(spec):
    whole = batch_of_64(spec)
    assert_same(pf.Sample(whole.images[:3], whole.log_prob[:3]), anchor(spec))


def test_first_index_continues_a_series_on_the_reference():
    case = case_of(SPECS[0])
    sampler = case.sampler("raster", "reference")
    later = sampler.sample(2, seed=SEED, first_index=1)
    assert_same(later, pf.Sample(anchor(SPECS[0]).images[1:], anchor(SPECS[0]).log_prob[1:]))


def test_seeds_differ():
    sampler = case_of(SPECS[3]).sampler()
    a, b = (sampler.sample(4, seed=s, labels=0).images for s in (0, 1))
    assert not torch.equal(a, b)
    assert len(a.flatten(1).unique(dim=0)) == 4


# --- every element once -----------------------------------------------------------------------------------


@functools.cache
def needed_multiply_adds(spec: Spec) -> int:
    """The elements of each convolution's output that some distribution depends on, by autograd, times the
    weights that the mask leaves alive."""
    model = copy.deepcopy(case_of(spec).module).double()
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, model.levels, (4, *spec.shape), generator=generator)
    made: list[tuple[Tensor, Tensor]] = []  # live weights, and what they yield

    def recorded(x, weight, bias, *, mask, padding, taps, condition, gate, residual):
        out = pf.masked_conv2d(x, weight, bias, mask=mask, padding=padding, taps=taps)
        made.append((torch.ones_like(weight) if mask is None else mask, out))
        y = (
            out
            if condition is None
            else out + condition.reshape(*condition.shape, *[1] * (4 - condition.ndim))
        )
        if gate:
            a, b = y.chunk(2, dim=1)
            y = torch.tanh(a) * torch.sigmoid(b)
        return y if residual is None else y + residual

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "masked_conv2d", recorded)
        patch.setattr(torch, "relu", F.softplus)  # its slope is nowhere zero
        params = model(images, **labels_of(model, 4))
    weights = torch.randn(params.shape, generator=generator, dtype=torch.double)
    grads = torch.autograd.grad((params * weights).sum(), [out for _, out in made], allow_unused=True)
    total = 0.0
    for (alive, out), grad in zip(made, grads, strict=True):
        needed = torch.zeros_like(out[0]) if grad is None else (grad != 0).any(0)
        total += (needed.flatten(1).sum(1) * alive.flatten(1).sum(1)).sum().item()
    return int(total)


@every_model
@every_order
@every_rung
def test_each_element_is_computed_once(spec, order, backend, isa):
    case = case_of(spec)
    sampler = case.sampler(order, backend, isa)
    n = 2 if backend == "reference" else 5
    sampler.sample(n, seed=SEED, threads=2 if backend == "cpu" else None, **case.labels(n))
    assert sampler._runtime.last_multiply_adds == n * sampler.multiply_adds
    assert sampler.multiply_adds == needed_multiply_adds(spec)


# --- random networks --------------------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(networks())
def test_random_networks_go_up_the_ladder(case):
    labels = case.labels(3)
    reference = case.sampler("raster", "reference")
    out = reference.sample(3, seed=SEED, **labels)
    assert_near(case, out, "reference")
    front = case.sampler("wavefront", "reference")
    one = front.sample(1, seed=SEED, **case.labels(1))
    assert_same(one, pf.Sample(out.images[:1], out.log_prob[:1]))
    assert front._runtime.last_multiply_adds == front.multiply_adds == reference.multiply_adds
    for isa in _cpu.isas():
        for order in ORDERS:
            sampler = case.sampler(order, "cpu", isa)
            for team in (1, 2):
                assert_same(sampler.sample(3, seed=SEED, threads=2, team=team, **labels), out)
                assert sampler._runtime.last_multiply_adds == 3 * reference.multiply_adds
        assert torch.equal(sampler.log_prob(out.images, **labels), out.log_prob)
    seen = dependence(case)
    steps = reference.schedule.order.steps.reshape(-1)
    assert not (seen & (steps[None] >= steps[:, None])).any(), "the network is not causal"
    steps = front.schedule.order.steps.reshape(-1)
    assert not (seen & (steps[None] >= steps[:, None])).any()
    assert np.isfinite(out.log_prob.numpy()).all()
