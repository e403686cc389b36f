"""Audits: what is measured where the plan is silent or wrong, and where nothing can be."""

from __future__ import annotations

import math
import os
import random

import audited
import numpy as np
import pytest
from audited import Net
from torch import Tensor

import pixelfast as pf
from pixelfast import _audit

GREY = (1, 5, 6)


def test_what_is_measured_counts_where_the_plan_says_otherwise(monkeypatch):
    module = audited.leaking()
    monkeypatch.setattr(_audit.C, "find_leak", lambda *_: None)
    audit = pf.audit(module, GREY)
    assert (audit.causal, audit.ok) == (False, False)
    assert str(audit).startswith("NOT causal: ")
    with pytest.raises(AssertionError, match="is not causal"):
        pf.testing.assert_causal(module, GREY)


class Chancy(Net):
    """Draws noise from another generator than PyTorch's."""

    def __init__(self, draw) -> None:
        super().__init__()
        self.draw = [draw]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.draw[0]()


@pytest.mark.parametrize("draw", [random.random, lambda: float(np.random.rand())], ids=["python", "numpy"])  # noqa: NPY002
def test_chance_of_other_generators_is_chance(draw):
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    audit = pf.audit(Chancy(draw), GREY)
    assert audit.causal
    assert audit.chance.random
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_what_no_seed_governs_cannot_be_measured():
    with pytest.raises(
        ValueError, match=r"\[audit\] Chancy gives other results in each run, whatever the random"
    ):
        pf.audit(Chancy(lambda: int.from_bytes(os.urandom(4), "big") / 2**30), GREY)


class Nothing(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * math.nan


def test_distributions_of_nothing_are_a_finding():
    audit = pf.audit(Nothing(), GREY)
    assert audit.scores.worst is None
    assert not audit.ok
