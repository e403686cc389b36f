"""A second compile of the same architecture: what is used again, and what must not be."""

from __future__ import annotations

import copy
import functools
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pixelfast as pf
from pixelfast import capture, orders, schedule
from pixelfast.fingerprint import fingerprint


@pytest.fixture
def counted(monkeypatch):
    """How often a module is exported and a plan is scheduled, from here on; nothing is known before."""
    counts = {"export": 0, "schedule": 0}
    monkeypatch.setattr(capture, "_EXPORTS", type(capture._EXPORTS)(8))
    monkeypatch.setattr(orders, "_ORDERS", type(orders._ORDERS)(8))
    monkeypatch.setattr(orders, "_SCHEDULES", type(orders._SCHEDULES)(8))

    def count(module, name, key):
        plain = getattr(module, name)

        @functools.wraps(plain)
        def counting(*args, **kwargs):
            counts[key] += 1
            return plain(*args, **kwargs)

        monkeypatch.setattr(module, name, counting)

    count(capture, "_export", "export")
    count(schedule, "schedule", "schedule")
    return counts


class Masked(nn.Conv2d):
    """Masks its weights in forward, with a hyperparameter that no tensor shows."""

    def __init__(self, ins, outs, kind, slope):
        super().__init__(ins, outs, 3, padding=1)
        self.slope = slope
        self.register_buffer("mask", torch.ones(3, 3))
        self.mask[1, 1 + (kind == "B") :] = 0
        self.mask[2:] = 0

    def forward(self, x):
        self.weight.data *= self.mask
        return F.leaky_relu(super().forward(x), self.slope)


def net(seed: int, slope: float = 0.2, hidden: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(Masked(1, hidden, "A", slope), Masked(hidden, 1, "B", slope))


OPTIONS = {"shape": (1, 4, 5), "head": pf.heads.Bernoulli(), "to_input": pf.inputs.scaled(-1, 1)}


def same(a: pf.Sampler, b: pf.Sampler) -> bool:
    left, right = a.sample(4, seed=1), b.sample(4, seed=1)
    return torch.equal(left.images, right.images) and torch.equal(left.log_prob, right.log_prob)


def test_new_weights_take_the_known_plan(counted):
    first = pf.compile(net(0), **OPTIONS)
    found = dict(counted)
    second = pf.compile(net(1), **OPTIONS)
    assert counted == found
    assert second.verify() < 1e-4
    assert not same(first, second)
    assert same(first, pf.compile(net(0), **OPTIONS))


def test_weights_that_changed_are_read_again(counted):
    module = net(0)
    pf.compile(module, **OPTIONS)
    with torch.no_grad():
        for p in module.parameters():  # masked ones, too
            p.add_(0.3)
    assert pf.compile(module, **OPTIONS).verify() < 1e-4
    assert counted["export"] == 1


def test_zeros_that_changed_are_planned_again(counted):
    module = net(0)
    pf.compile(module, **OPTIONS)
    scheduled = counted["schedule"]
    with torch.no_grad():
        module[0].mask[0] = 0  # blind to the row above
    assert pf.compile(module, **OPTIONS).verify() < 1e-4
    assert counted["export"] == 1
    assert counted["schedule"] > scheduled
    with torch.no_grad():
        module[0].mask[:] = 1
    with pytest.raises(pf.CausalityError):
        pf.compile(module, **OPTIONS)


@pytest.mark.parametrize(
    "other",
    [
        lambda: (net(0, slope=0.3), OPTIONS),
        lambda: (net(0, hidden=5), OPTIONS),
        lambda: (net(0), OPTIONS | {"to_input": pf.inputs.scaled(0, 1)}),
        lambda: (net(0), OPTIONS | {"to_input": lambda x: x.float() - 0.5}),
        lambda: (net(0), OPTIONS | {"shape": (1, 5, 4)}),
    ],
    ids=["a hyperparameter", "a width", "an input", "a function", "a shape"],
)
def test_another_architecture_is_exported(counted, other):
    pf.compile(net(0), **OPTIONS)
    module, options = other()
    assert pf.compile(module, **options).verify() < 1e-4
    assert counted["export"] == 2


def test_a_method_that_is_replaced_is_exported(counted):
    def compiled(forward):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net(0)

        Model.forward = forward
        return pf.compile(Model(), **OPTIONS)

    one = compiled(lambda self, x: self.net(x))
    two = compiled(lambda self, x: 2 * self.net(x))
    assert counted["export"] == 2
    assert not same(one, two)


def twice(x):
    return 2 * x


FACTOR = 1.0


class Globals(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net(0)

    def forward(self, x):
        return FACTOR * twice(self.net(x))


@pytest.mark.parametrize(
    ("name", "value"),
    [("FACTOR", 1.00005), ("twice", lambda x: x + x + 1e-6)],
    ids=["a number", "a function"],
)
def test_globals_count(counted, monkeypatch, name, value):
    pf.compile(Globals(), **OPTIONS)
    pf.compile(Globals(), **OPTIONS)
    assert counted["export"] == 1
    monkeypatch.setitem(globals(), name, value)
    pf.compile(Globals(), **OPTIONS)
    assert counted["export"] == 2


def test_what_the_fingerprint_misses_is_exported(counted, monkeypatch):
    """A graph is used again only where it gives what the module gives."""

    class Model(nn.Module):
        scale: ClassVar = [1.0]

        def __init__(self):
            super().__init__()
            self.net = net(0)

        def forward(self, x):
            return self.scale[0] * self.net(x)

    pf.compile(Model(), **OPTIONS)
    Model.scale[0] = 3.0
    assert pf.compile(Model(), **OPTIONS).verify() < 1e-4
    assert counted["export"] == 2


def test_modules_that_cannot_be_written_down_have_no_fingerprint():
    module = net(0)
    module.stream = (i for i in range(3))
    assert fingerprint(module) == (None, [])


def test_fingerprints():
    def of(module):
        return fingerprint(module)[0]

    assert of(net(0)) == of(net(1)) == of(copy.deepcopy(net(2)))
    assert of(net(0)) != of(net(0, slope=0.1))
    presets = [pf.models.PixelCNNPlusPlus(hidden=4, blocks=1) for _ in range(2)]  # of parametrized modules
    assert of(presets[0]) == of(presets[1])
    listed = [nn.Identity(), nn.Identity()]
    for module, value in zip(listed, (0.0, 1.0), strict=True):
        module.constants = [torch.full((2,), value)]
    assert of(listed[0]) != of(listed[1])  # tensors that a graph would hold as constants


def test_scores_and_orders_take_the_known_plan(counted):
    for order in ("raster", "wavefront", "auto"):
        first, second = (pf.compile(net(s), order=order, **OPTIONS) for s in (0, 1))
        images = second.sample(3, seed=2)
        assert torch.equal(second.log_prob(images.images), images.log_prob)
        assert first.schedule.encoded is second.schedule.encoded
    assert counted["export"] == 1


def test_nothing_keeps_the_weights():
    known = orders._SCHEDULES
    pf.compile(net(0), **OPTIONS)
    (_, make) = next(reversed(known._values.values()))
    assert "plan" not in make.keywords


def test_graphs_keep_no_tensors_of_a_module(counted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(0)
            self.register_buffer("own", torch.ones(1, 1, 4, 5), persistent=False)
            self.plain = torch.ones(1, 1, 4, 5)

        def forward(self, x):
            return self.net(x) * self.own + self.plain

    pf.compile(Model(), **OPTIONS)
    ((exported, _),) = capture._EXPORTS._values.values()
    assert not any(t.numel() >= 20 for t in exported.constants.values())
    other = Model()
    other.own.mul_(2)
    other.plain.mul_(3)
    assert pf.compile(other, **OPTIONS).verify() < 1e-4
    assert counted["export"] == 1
