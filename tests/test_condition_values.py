"""Values of conditions: what compile, sample and verify take, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conditioned import (
    CLASSES,
    GRID,
    HEIGHT,
    MAP,
    ONE_HOT,
    PARTS,
    SHAPE,
    WIDTH,
    Net,
    compiled,
    draw,
)

import pixelfast as pf
from pixelfast.capture import Conditioner
from pixelfast.conditions import varied


def test_each_distinct_value_is_evaluated_once_and_alone(monkeypatch):
    _, sampler = compiled("two")
    given = draw(PARTS["two"][1], 3)
    alone = [
        sampler.sample(1, conditions={k: v[i] for k, v in given.items()}, first_index=i) for i in range(3)
    ]
    runs = []
    plain = Conditioner.run
    monkeypatch.setattr(Conditioner, "run", lambda self, values: runs.append(values) or plain(self, values))
    both = {k: v[[0, 1, 2, 1, 0]] for k, v in given.items()}
    out = sampler.sample(5, conditions=both)
    assert len(runs) == 3
    for i, one in enumerate(alone):
        assert torch.equal(out.images[i], one.images[0])
        assert out.log_prob[i] == one.log_prob[0]
    runs.clear()
    sampler.sample(4, conditions=both | {k: v[0] for k, v in given.items()})
    assert len(runs) == 1
    sampler.sample(0, conditions={k: v[:0] for k, v in given.items()})
    assert len(runs) == 1


def test_a_condition_of_one_image_serves_all():
    _, sampler = compiled("added")
    one = draw(MAP, 1)["m"]
    out = sampler.sample(3, conditions={"m": one[0]})
    again = sampler.sample(3, conditions={"m": one.expand(3, -1, -1, -1)})
    assert torch.equal(out.images, again.images)
    assert torch.equal(out.log_prob, again.log_prob)
    assert torch.equal(sampler.log_prob(out.images, conditions={"m": one[0].numpy()}), out.log_prob)
    assert torch.equal(sampler.log_prob(out.images, conditions={"m": one[0].tolist()}), out.log_prob)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        (
            "added",
            torch.zeros(3, 4, 5),
            r"\[sample\] m must have shape \(3, 4, 6\) or \(2, 3, 4, 6\), got \(3, 4, 5\); forward takes float32 of "
            r"shape \(3, 4, 6\) for each image",
        ),
        ("added", torch.zeros(1, 3, 4, 6), r"m must have shape .*, got \(1, 3, 4, 6\)"),
        ("added", 1.0, r"m must have shape .*, got \(\)"),
        (
            "added",
            "map",
            r"\[sample\] m must be numbers or a tensor, got 'map'; forward takes float32 of shape",
        ),
        ("added", None, r"\[sample\] m must be numbers or a tensor, got None"),
        (
            "codes, nearest",
            torch.zeros(2, 3),
            r"\[sample\] t must be integers, got torch\.float32; forward takes int64 of shape \(2, 3\) for each image",
        ),
        ("codes, nearest", torch.zeros(2, 3, dtype=torch.bool), "t must be integers, got torch.bool"),
        (
            "codes, nearest",
            torch.full((2, 3), 5),
            r"\[sample\] the model failed on the conditions of image 0, t int64 \(2, 3\) from 5 to 5: IndexError: ",
        ),
        ("mask", torch.ones(1, HEIGHT, WIDTH), r"b must be truth values, got torch\.float32"),
        (
            "number",
            torch.zeros(3),
            r"s must be a number or have shape \(2,\), got \(3,\); forward takes one float32",
        ),
        (
            "number by example",
            7,
            r"\[sample\] the model failed on the conditions of image 0, y 7: IndexError: ",
        ),
    ],
)
def test_bad_values_are_refused(name, value, match):
    _, sampler = compiled(name)
    (key,) = PARTS[name][1]
    with pytest.raises(ValueError, match=match):
        sampler.sample(2, conditions={key: value})


def test_values_that_do_not_fit_are_refused():
    net = Net(lambda g, h, x, y: h + g.embed(y.long())[:, :, None, None])
    sampler = pf.compile(net, shape=SHAPE, conditions={"y": torch.uint8})
    assert torch.equal(
        sampler.sample(1, conditions={"y": 4}).images, sampler.sample(1, conditions={"y": [4]}).images
    )
    with pytest.raises(ValueError, match=r"\[sample\] y must fit torch.uint8, got values from 257 to 257"):
        sampler.sample(2, conditions={"y": 257})


def test_a_missing_condition_is_named():
    _, sampler = compiled("two")
    with pytest.raises(ValueError, match=r"conditioned on t, m: m is missing"):
        sampler.sample(1, conditions={"t": GRID["t"]})


@pytest.mark.parametrize("order", [GRID | MAP, MAP | GRID])
def test_conditions_are_told_apart_by_name(order):
    net = Net(PARTS["two"][0])
    given = draw(GRID | MAP, 2)
    _, sampler = compiled("two")
    out = sampler.sample(2, conditions=given)
    again = pf.compile(net, shape=SHAPE, conditions=order).sample(2, conditions=given)
    assert torch.equal(out.log_prob, again.log_prob)


# --- compile ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "match"),
    [
        (
            {"m": (3, 4, 6)},
            r"\[compile\] conditions: m must be a torch.dtype, for a number, or an example Tensor of",
        ),
        ({"m": np.zeros((3, 4, 6))}, r"an example Tensor of one image, got array"),
        (["m"], r"\[compile\] conditions must map names to dtypes or example tensors, got \['m'\]"),
        (
            {"m": MAP["m"][None]},
            r"forward failed, given images int64 \(2, 2, 4, 6\), m float32 \(2, 1, 3, 4, 6\)",
        ),
        (
            {"m": MAP["m"].long()},
            r"forward failed, given images int64 \(2, 2, 4, 6\), m int64 \(2, 3, 4, 6\)",
        ),
        ({}, r"forward failed, given images int64 \(2, 2, 4, 6\): TypeError: .*missing"),
    ],
)
def test_bad_conditions_of_compile_are_refused(conditions, match):
    with pytest.raises(ValueError, match=match):
        pf.compile(Net(PARTS["added"][0]), shape=SHAPE, conditions=conditions)


def test_classes_bound_labels_that_are_numbers_alone():
    net = Net(lambda g, h, x, labels: h + g.vector(labels)[:, :, None, None])
    net.classes = CLASSES
    sampler = pf.compile(net, shape=SHAPE, conditions={"labels": ONE_HOT["o"]})
    assert sampler.verify() < 1e-4
    assert len(sampler.sample(2, labels=-ONE_HOT["o"]).images) == 2


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda net: net.forward,
            r"\[compile\] module must be a torch.nn.Module, got a method; pass the Net itself",
        ),
        (
            lambda net: lambda x: x,
            r"must be a torch.nn.Module, got a function; a function can be the forward of",
        ),
        (lambda net: type(net), r"must be a torch.nn.Module, got a type; pass an instance"),
        (lambda net: None, r"must be a torch.nn.Module, got a NoneType"),
    ],
)
def test_what_is_not_a_module_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        pf.compile(make(Net(PARTS["added"][0])), shape=SHAPE, head=pf.heads.Categorical(3))
    with pytest.raises(ValueError, match=match.replace("compile", "audit")):
        pf.audit(make(Net(PARTS["added"][0])), SHAPE, head=pf.heads.Categorical(3))


def test_a_model_conditioned_on_maps_is_audited():
    net, _ = compiled("added")
    audit = pf.audit(net, SHAPE, conditions=MAP)
    assert audit.causal
    assert audit.scores.worst < 1e-3


# --- verify -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "second"),
    [
        (torch.tensor(2), torch.tensor(2)),
        (torch.tensor([1, 0, 4]), torch.tensor([1, 0, 4])),
        (torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 0, 1])),
        (torch.tensor([0.5, 1, 0]), torch.tensor([0.5, 1, 0])),
        (torch.tensor([True, False]), torch.tensor([False, True])),
        (torch.tensor([[1, 2], [3, 4]]), torch.tensor([[3, 4], [1, 2]])),
        (torch.arange(8).view(2, 2, 2), torch.tensor([[[2, 3], [0, 1]], [[6, 7], [4, 5]]])),
    ],
)
def test_examples_are_varied_where_that_is_safe(example, second):
    found = varied(example.expand(2, *example.shape))
    assert torch.equal(found[0], example)
    assert torch.equal(found[1], second)


def test_verify_takes_conditions():
    _, sampler = compiled("codes, nearest")
    assert sampler.verify(conditions=draw(GRID, 2)) < 1e-4
    assert sampler.verify(conditions={"t": GRID["t"]}) < 1e-4
    with pytest.raises(
        ValueError, match=r"\[verify\] t must have shape \(2, 3\) or \(2, 2, 3\), got \(3, 2, 3\)"
    ):
        sampler.verify(conditions=draw(GRID, 3))
