"""Recurrent models: loops of the plan over a grid, drawn to the bit on every rung, with the presets of the paper."""

from __future__ import annotations

import functools

import numpy as np
import plainly
import pytest
import torch
from torch import Tensor, nn
from zoo import ISAS, assert_same_on

import pixelfast as pf
from pixelfast.models import DiagonalBiLSTM, LSTM2d, RowLSTM

KINDS = [RowLSTM, DiagonalBiLSTM, LSTM2d]


def small(kind, channels: int = 1, **options):
    torch.manual_seed(0)
    model = kind(channels=channels, levels=3, hidden=6, layers=2, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


@functools.cache
def compiled(kind, channels: int) -> pf.Sampler:
    return pf.compile(small(kind, channels), shape=(channels, 3, 4), backend="reference")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_rung(kind, channels, isa):
    sampler = compiled(kind, channels)
    assert sampler.verify() < 1e-4
    assert_same_on(sampler, isa, seed=6)
    want = sampler.sample(3, seed=6)
    assert torch.equal(sampler.log_prob(want.images), want.log_prob)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 1)])
def test_sizes(kind, size):
    model = small(kind)
    found = [
        pf.compile(model, shape=(1, *size), order=order, backend=backend).sample(2, seed=1)
        for order, backend in (("auto", "cpu"), ("raster", "cpu"), ("raster", "reference"))
    ]
    for other in found[1:]:
        assert torch.equal(other.images, found[0].images)
        assert torch.equal(other.log_prob, found[0].log_prob)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_the_plain_loop(kind):
    model = small(kind, classes=3)
    labels = torch.tensor([2, 0])
    sampler = pf.compile(model, shape=(1, 3, 4))
    sample = sampler.sample(2, labels=labels, seed=4)
    plain = plainly.sample(model, 2, (1, 3, 4), 4, labels=labels)
    assert torch.equal(plain, sample.images.long())


@pytest.mark.parametrize("only", [None, 0, 1], ids=["both", "hidden", "cell"])
@pytest.mark.parametrize("learned_edge", [False, True])
def test_edges(learned_edge, only):
    model = small(LSTM2d, learned_edge=learned_edge)
    edge = model.layers[0].scan.edge
    assert (edge is not None) is learned_edge
    if edge is not None and only is not None:
        edge.data[1 - only] = 0
    assert pf.compile(model, shape=(1, 4, 5)).verify() < 1e-4
    assert model.config["learned_edge"] is learned_edge


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_states_neither_grow_nor_vanish_across_the_image(kind):
    torch.manual_seed(0)
    model = kind(levels=2, hidden=16, layers=1, head="bernoulli")
    (scan,) = [m for m in model.modules() if hasattr(m, "to_state")][:1]
    gates = torch.randn(2, scan.weight.shape[1], 40, 40) * 0.5 + scan.to_state.bias[:, None, None]
    options = {"hidden": scan.neighbours, "cells": scan.cells}
    cells = torch.ops.pixelfast.lstm_scan.default(
        gates, scan.weight, None, sum(scan.neighbours, ()), sum(scan.cells, ())
    )[2][1]
    states = pf.lstm_scan(gates, scan.weight, **options)
    assert cells.abs().max() < 10
    assert 0.5 < states[:, :, -1].std() / states[:, :, 0].std() < 2


def test_orders():
    """A two-dimensional LSTM goes by diagonals, a Row LSTM by steeper ones, a Diagonal BiLSTM needs whole rows."""
    steps = {kind: pf.compile(small(kind), shape=(1, 6, 7), order="wavefront").steps for kind in KINDS}
    assert steps[LSTM2d] == 7 + (6 - 1)
    assert steps[RowLSTM] == 7 + 4 * (6 - 1)  # 4: the first kernel looks 3 columns to the right, 1 row up
    assert steps[DiagonalBiLSTM] == 7 + 6 * (
        6 - 1
    )  # one less than the width: the last pixel of a row may wait
    why = str(pf.compile(small(DiagonalBiLSTM), shape=(1, 6, 7), order="wavefront").explain())
    assert "no smaller skew: pixel (y=1, x=0) depends on pixel (y=0, x=5)" in why


@pytest.mark.parametrize("kind", KINDS)
def test_every_state_is_computed_once(kind):
    sampler = pf.compile(small(kind), shape=(1, 5, 6))
    plan = sampler.schedule.plan
    runs = {i: [] for i in plan.loops}
    for _, i, positions in sampler.schedule.launches():
        if i in runs:
            runs[i] += map(tuple, positions.tolist())
    layers = 4 if kind is DiagonalBiLSTM else 2
    assert len(runs) == 2 * layers  # a cell and a hidden state each
    for i, positions in runs.items():
        assert len(positions) == len(set(positions))
        assert {tuple(p) for p in positions} <= {*np.ndindex(plan.grid(plan.ops[i]))}
    sampler.sample(3)
    assert sampler._runtime.last_multiply_adds == 3 * sampler.multiply_adds


def test_loops_are_split_by_colour():
    plan = compiled(RowLSTM, 3)._plan
    names = [plan.maps[op.out].name for i, op in enumerate(plan.ops) if i in plan.loops]
    assert names == [
        f"layers.{layer}.scan.{part}/{c}" for layer in (0, 1) for part in ("cell", "hidden") for c in range(3)
    ]


class Scrambled(nn.Module):
    """A recurrent layer of whose cells every other one depends on less, while all output gates are alike."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(1, 16, 4) * 0.5)
        self.first, self.last = nn.Conv2d(1, 16, (1, 2)), nn.Conv2d(4, 3, 1)
        live = torch.ones(16, 1, 1, 2)
        live[8:12:2, :, :, 0] = 0  # of the input gates
        self.register_buffer("live", live)

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (2, -1))
        gates = nn.functional.conv2d(padded, self.first.weight * self.live, self.first.bias)
        return self.last(pf.lstm_scan(gates, self.weight, hidden=[(-1, 0)], cells=[(-1, 0)]))


def test_a_loop_that_cannot_be_split_stays_whole():
    sampler = pf.compile(
        Scrambled(),
        shape=(1, 3, 4),
        head=pf.heads.Categorical(3),
        to_input=pf.inputs.scaled(-1, 1),
        backend="reference",
    )
    assert sampler.verify() < 1e-4
    assert [m.name for m in sampler._plan.maps if "hidden" in m.name] == ["lstm_scan.hidden"]
    assert_same_on(sampler, "scalar", seed=2)


def count(model: nn.Module) -> int:
    """Weights that a mask leaves alive, and biases."""
    total = 0
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            mask = getattr(module, "mask", None) if name == "weight" else None
            total += parameter.numel() if mask is None else int(mask.sum())
    return total


@pytest.mark.parametrize(
    ("model", "directions", "to_state"),
    [(RowLSTM.preset("cifar10"), 1, 2), (DiagonalBiLSTM.preset("cifar10"), 2, 1)],
    ids=["row", "diagonal"],
)
def test_presets_of_three_colours_have_the_layers_of_the_paper(model, directions, to_state):
    assert (model.config["layers"], model.config["hidden"], model.levels) == (12, 128, 256)
    for layer in model.layers:
        scans = [m for m in layer.modules() if hasattr(m, "to_state")]
        assert len(scans) == directions
        for scan in scans:
            assert scan.to_state.weight.shape == (4 * 128, 2 * 128, 1, to_state)
            assert scan.weight.shape == (3 if directions == 1 else 2, 4 * 128, 128)
        assert layer.out.weight.shape == (256, 128, 1, 1)


def test_the_preset_for_mnist():
    """The paper gives no counts: these are of table 1 and section 3.2, by hand."""
    model = DiagonalBiLSTM.preset("mnist")
    h, wide = 16, 32
    scan = (wide * 4 * h + 4 * h) + 2 * (h * 4 * h)  # input to state 1x1 with a bias, state to state 2x1
    layer = 2 * scan + (h * wide + wide)
    first, mix, last = 24 * wide + wide, wide * wide + wide, wide + 1
    assert count(model) == sum(p.numel() for p in model.parameters()) - 4 * wide
    assert count(model) == first + 7 * layer + mix + last
    with pytest.raises(
        ValueError, match=r"\[RowLSTM\] preset must be one of cifar10, imagenet32, got 'mnist'"
    ):
        RowLSTM.preset("mnist")
