"""Idioms of public repositories: they compile as they are, go up the truth ladder, and are caught where broken."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from idioms import IDIOMS, Idiom, double
from torch import Tensor
from zoo import ISAS, ORDERS, TOLERANCE, Case

import pixelfast as pf
from pixelfast import causality as C
from pixelfast import readiness as R

SEED = 7
every_idiom = pytest.mark.parametrize("name", IDIOMS)
every_break = pytest.mark.parametrize(
    ("name", "broken"), [(n, b) for n, idiom in IDIOMS.items() for b in idiom.broken]
)
RUNGS = [("reference", None), *[pytest.param("cpu", *p.values, marks=p.marks) for p in ISAS]]
every_rung = pytest.mark.parametrize(("backend", "isa"), RUNGS)
every_isa = pytest.mark.parametrize("isa", ISAS)


class IdiomCase(Case):
    """An idiom's module, as for training, captured once."""

    def __init__(self, idiom: Idiom):
        super().__init__(idiom.build().train(), idiom.shape)
        self.idiom = idiom
        self.before = copy.deepcopy(self.module.state_dict())

    @functools.cached_property
    def _captured(self) -> pf.Sampler:
        return pf.compile(self.module, **self.idiom.options, order="raster", backend="reference")

    def labels(self, n: int, first: int = 0) -> dict[str, Any]:
        return {"conditions": self.idiom.labels(n, first)}

    def exact_log_prob(self, images: Tensor, first: int = 0) -> Tensor:
        """float64 (N,): the module's own, teacher-forced."""
        labels, head = self.idiom.labels(len(images), first), self.idiom.head
        if hasattr(head, "probabilities"):  # which compile has found out
            head = replace(head, probabilities=self._captured._head.probabilities)
        scores = self.idiom.exact(double(self.idiom), images, labels, head)
        return scores.gather(1, images.unsqueeze(1)).flatten(1).sum(1)


@functools.cache
def case_of(name: str) -> IdiomCase:
    return IdiomCase(IDIOMS[name])


@functools.cache
def anchor(name: str) -> pf.Sample:
    case = case_of(name)
    return case.sampler("raster", "reference").sample(2, seed=SEED, **case.labels(2))


def assert_same(got: pf.Sample, want: pf.Sample) -> None:
    assert torch.equal(got.images, want.images)
    assert torch.equal(got.log_prob, want.log_prob)


# --- up the ladder ----------------------------------------------------------------------------------------


@every_idiom
def test_scores_are_those_of_the_module(name):
    case = case_of(name)
    images = case.idiom.images(6)
    exact = case.exact_log_prob(images)
    assert (exact - exact.mean()).abs().max() > 0.5  # images differ in how likely they are
    case.sampler().verify()
    for backend, n in (("cpu", 6), ("reference", 1)):
        sampler = case.sampler("raster", backend)
        found = sampler.log_prob(images[:n], **case.labels(n)).double()
        torch.testing.assert_close(found, exact[:n], **TOLERANCE[backend, "float32"])


@every_idiom
@every_rung
def test_every_rung_draws_the_same_images(name, backend, isa):
    case, want = case_of(name), anchor(name)
    for order in ORDERS:
        sampler = case.sampler(order, backend, isa)
        assert_same(sampler.sample(2, seed=SEED, **case.labels(2)), want)
        assert sampler._runtime.last_multiply_adds == 2 * sampler.multiply_adds
    assert torch.equal(sampler.log_prob(want.images, **case.labels(2)), want.log_prob)


@functools.cache
def batch_of_33(name: str) -> pf.Sample:
    case = case_of(name)
    return case.sampler("raster", "cpu", "scalar").sample(33, seed=SEED, threads=1, **case.labels(33))


@every_idiom
@every_isa
def test_an_image_does_not_depend_on_what_is_drawn_with_it(name, isa):
    case, whole = case_of(name), batch_of_33(name)
    batches = [(33, 0, 2, None), (33, 0, 1, 5), (7, 3, 2, 1), (1, 32, 1, None)]
    for i, (n, first, threads, chunk) in enumerate(batches):
        sampler = case.sampler(ORDERS[i % 2], "cpu", isa)
        how = {"threads": threads, "chunk": chunk, **case.labels(n, first)}
        out = sampler.sample(n, seed=SEED, first_index=first, **how)
        assert_same(out, pf.Sample(whole.images[first : first + n], whole.log_prob[first : first + n]))
        assert torch.equal(sampler.log_prob(out.images, **how), out.log_prob)
    assert_same(pf.Sample(whole.images[:2], whole.log_prob[:2]), anchor(name))


@every_idiom
def test_the_module_is_left_untouched(name):
    case = case_of(name)
    case.sampler().sample(1, **case.labels(1))
    after = case.module.state_dict()
    assert after.keys() == case.before.keys()
    assert all(torch.equal(after[k], v) for k, v in case.before.items())
    assert all(m.training for m in case.module.modules())


# --- what depends on what ---------------------------------------------------------------------------------


@functools.cache
def dependence(name: str, broken: str | None) -> np.ndarray:
    """float64 (D, D), sub-pixels as (c, y, x) flattened: how much the first's log probabilities change, at most, when
    the second is changed in one of several random images. PyTorch alone computes it."""
    idiom = IDIOMS[name]
    module, count = double(idiom, broken), math.prod(idiom.shape)
    largest = torch.zeros(count, count, dtype=torch.float64)
    index = torch.arange(count)
    for seed in range(8):
        batch = idiom.images(1, seed).repeat(count + 1, 1, 1, 1)
        flat = batch.view(count + 1, -1)
        flat[index, index] = (flat[index, index] + 1) % idiom.head.levels
        labels = {key: v[:1].expand(count + 1) for key, v in idiom.labels(1).items()}
        scores = idiom.exact(module, batch, labels)
        change = (scores[:-1] - scores[-1:]).abs().amax(1).flatten(1).T
        largest = torch.maximum(largest, change)
    return largest.numpy()


def leak(name: str, broken: str | None, order: R.Order) -> float:
    """The largest change of a sub-pixel's log probabilities by one that is not drawn before it."""
    steps = order.steps.reshape(-1)
    return float(dependence(name, broken)[steps[None] >= steps[:, None]].max(initial=0))


@pytest.mark.parametrize("name", IDIOMS)
def test_sound_modules_do_not_leak(name):
    idiom = IDIOMS[name]
    assert leak(name, None, R.raster(idiom.shape)) < 1e-12
    assert dependence(name, None).max() > 1e-2


@pytest.mark.parametrize("name", IDIOMS)
def test_the_wavefront_is_no_flatter_than_it_may_be(name):
    idiom = IDIOMS[name]
    assert leak(name, None, R.wavefront(idiom.shape, idiom.skew)) < 1e-12
    assert leak(name, None, R.wavefront(idiom.shape, idiom.skew - 1)) > 1e-6


@every_idiom
def test_the_wavefront_is_found(name):
    assert C.find_skew(case_of(name).plan) == IDIOMS[name].skew


@pytest.mark.parametrize(("name", "broken"), [(n, b) for n, idiom in IDIOMS.items() for b in idiom.broken])
def test_broken_modules_leak(name, broken):
    assert leak(name, broken, R.raster(IDIOMS[name].shape)) > 1e-6


@every_break
def test_broken_modules_are_caught(name, broken):
    """By the audit, as by compile."""
    idiom = IDIOMS[name]
    module = idiom.build(broken)
    with pytest.raises(pf.CausalityError, match=r"the model is not causal: .* The leak is in module '"):
        pf.compile(module, **idiom.options)
    audit = pf.audit(module.eval(), **idiom.options)
    assert (audit.causal, audit.exact, audit.ok) == (False, True, False)
    assert audit.leak is not None
    assert str(audit).startswith("NOT causal: ")


@every_idiom
def test_sound_modules_pass_the_audit(name):
    idiom = IDIOMS[name]
    audit = pf.audit(idiom.build().eval(), **idiom.options)
    assert (audit.causal, audit.exact, audit.ok) == (True, True, True), audit


def test_the_zoo_is_large():
    assert len(IDIOMS) >= 14
    assert all(len(set(idiom.broken)) == len(idiom.broken) >= 2 for idiom in IDIOMS.values())
