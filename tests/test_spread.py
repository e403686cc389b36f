"""Teams that arrive and wait apart, and what runs in between, on the emulation of a GPU."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from zoo import ORDERS, Case

import pixelfast as pf

NETWORKS = {
    "plain": lambda: (pf.models.PixelCNN(hidden=6, layers=4, levels=3), (1, 5, 4)),
    "colours": lambda: (pf.models.PixelCNN(channels=3, hidden=6, layers=2, levels=3), (3, 3, 4)),
    "gated": lambda: (pf.models.GatedPixelCNN(hidden=6, layers=3, levels=3, kernel=3), (1, 5, 6)),
    "skewed": lambda: (pf.models.GatedPixelCNN(hidden=6, layers=2, levels=3, kernel=3, skew=2), (1, 4, 6)),
}
everywhere = pytest.mark.parametrize(
    ("which", "order"), [(which, order) for which in NETWORKS for order in ORDERS]
)


@functools.cache
def case(which: str) -> Case:
    torch.manual_seed(0)
    model, shape = NETWORKS[which]()
    return Case(model.eval(), shape)


@functools.cache
def load(which: str, order: str):
    """The program, cut and scheduled as for devices, its sampler and its multiply-adds by op."""
    sampler = case(which).sampler(order, "emulated")
    sums = [
        sum(tap[2] for tap in op.taps) * op.fields.get("product_channels", 0)
        for op in sampler.program.decoded.ops
    ]
    return sampler.target.load(sampler.program), sums


@everywhere
@pytest.mark.parametrize("team", [1, 2, 3])  # a block, a cluster, and blocks that wait in memory
def test_both_orders_have_the_bits_of_the_cpu(which, order, team):
    want = case(which).sampler(order).sample(3, seed=1, per_pixel=True)
    program, _ = load(which, order)
    for spread, resident in itertools.product((0, 1), (0, 2000)):
        images, log_prob = (np.empty(want.images.shape, dtype) for dtype in (np.int32, np.float32))
        options = {"team": team, "chunk": 2, "resident_nbytes": resident, "spread": spread}
        program.run(images=images, log_prob=log_prob, seed=1, **options)
        assert (images == want.images.numpy()).all(), options
        assert (log_prob == want.log_prob.numpy()).all(), options


def shadows(launches, sums) -> list[int]:
    """The multiply-adds of a position between each arrival and the wait that it is for."""
    found: list[int] = []
    arrived = False
    for op, waits, arrives in launches:
        assert waits <= arrived, "a wait without an arrival"
        arrived = arrived and not waits
        if arrived:
            found[-1] += sums[op]
        assert not (arrives and arrived), "two arrivals without a wait"
        if arrives:
            arrived = True
            found.append(0)
    assert not arrived, "an arrival without a wait"
    return found


@everywhere
def test_early_halves_are_spread_and_nobody_waits_more_often(which, order):
    program, sums = load(which, order)
    first, spread = (shadows(program.launches(spread), sums) for spread in (False, True))
    assert len(first) == len(spread)
    assert 0 < np.count_nonzero(first) < np.count_nonzero(spread)
    assert max(spread) <= max(first)
    as_is, moved = ([op for op, *_ in program.launches(spread)] for spread in (False, True))
    assert sorted(as_is) == sorted(moved)


def test_the_cheaper_order_is_taken():
    program, _ = load("gated", "raster")
    taken = set()
    for n in (1, 64):
        first, spread, chosen = (program.estimates(n=n, spread=s) for s in (0, 1, -1))
        assert not any(crew["spread"] for crew in first)
        assert all(crew["spread"] for crew in spread)
        for a, b, c in zip(first, spread, chosen, strict=True):
            assert c["cycles"] == min(a["cycles"], b["cycles"])
            assert c["spread"] == (b["cycles"] < a["cycles"])
            taken.add(c["spread"])
    assert taken == {False, True}
    chain = pf.compile(
        pf.models.PixelCNN(hidden=8, layers=1, levels=2).eval(), shape=(1, 3, 3), backend="emulated"
    )
    assert chain._runtime.launches(True) == chain._runtime.launches(False)
    assert {c.spread for c in chain.explain(2).crews} == {False}
    assert "early halves" in str(chain.explain(2))
