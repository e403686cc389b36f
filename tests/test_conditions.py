"""Conditions that are numbers, vectors and maps: told to compile, checked, evaluated, and wherever they may enter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ISAS, loud, recompile

import pixelfast as pf
from pixelfast.capture import Conditioner
from pixelfast.causality import find_skew
from pixelfast.conditions import varied
from pixelfast.readiness import raster, wavefront
from pixelfast.sampler import _schedule

HEIGHT, WIDTH, CODES, CLASSES = 4, 6, 5, 3
SHAPE = (2, HEIGHT, WIDTH)
MAP = {"m": torch.linspace(-1, 1, 3 * HEIGHT * WIDTH).view(3, HEIGHT, WIDTH)}  # of floats
GRID = {"t": torch.arange(6).view(2, 3) % CODES}  # of codes, half as large
MASK = {"b": (torch.arange(HEIGHT * WIDTH) % 3 > 0).view(1, HEIGHT, WIDTH)}
ONE_HOT = {"o": F.one_hot(torch.tensor(1), CLASSES).float()}


def draw(conditions: dict[str, Any], n: int, seed: int = 0) -> dict[str, Tensor]:
    """Conditions of n images, all different."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, like in conditions.items():
        like = torch.zeros((), dtype=like) if isinstance(like, torch.dtype) else like
        normal = torch.randn(n, *like.shape, generator=generator)
        codes = torch.randint(CODES, (n, *like.shape), generator=generator)
        found[name] = (
            normal if like.is_floating_point() else normal > 0 if like.dtype == torch.bool else codes
        )
    return found


class Net(nn.Module):
    """Features `h` (N, 4, H, W) of earlier pixels, and what `part` makes of them, the images and the conditions."""

    def __init__(self, part: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.part = [part]  # not a module
        self.head = pf.heads.Categorical(3)
        self.first = nn.Conv2d(2, 4, (1, 2))
        self.same, self.narrow = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 1, 1)
        self.down, self.up = nn.Conv2d(3, 4, 2, stride=2), nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.embed, self.vector = nn.Embedding(CODES, 4), nn.Linear(CLASSES, 4)
        self.join, self.taps = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, (2, 3))
        self.linear = nn.Linear(8, 4)
        self.raw = nn.Conv2d(5, 4, (1, 2))
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.last = nn.Conv2d(4, 6, 1)

    def forward(self, images: Tensor, **conditions: Tensor) -> Tensor:
        h = self.first(F.pad(images.to(self.last.weight.dtype), (2, -1)))
        return self.last(self.part[0](self, h, images, **conditions)).view(-1, 3, *SHAPE)


def last(x: Tensor) -> Tensor:
    """Channels last."""
    return x.permute(0, 2, 3, 1)


def flat(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N, HW, C)."""
    return x.flatten(2).transpose(1, 2)


def grid(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(-1, x.shape[2], HEIGHT, WIDTH)


def heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], -1, 2, 2).transpose(1, 2)


def fused(m: Net, h: Tensor, x: Tensor, c: Tensor) -> Tensor:
    y = F.scaled_dot_product_attention(heads(m.q(flat(h))), heads(m.k(flat(c))), heads(m.v(flat(c))))
    return h + grid(y.transpose(1, 2).flatten(2))


def spelled(m: Net, h: Tensor, x: Tensor, c: Tensor) -> Tensor:
    weights = (m.q(flat(h)) @ m.k(flat(c)).transpose(1, 2) / 2).softmax(-1)
    return h + grid(weights @ m.v(flat(c)))


def transposed(m: Net, h: Tensor, x: Tensor, c: Tensor) -> Tensor:
    weights = (m.k(flat(c)) @ m.q(flat(h)).transpose(1, 2) / 2).softmax(1)
    return h + (m.v(flat(c)).transpose(1, 2) @ weights).view(h.shape)


def merged(m: Net, h: Tensor, x: Tensor, c: Tensor) -> Tensor:
    """Heads in the batch, and only every other key."""
    q, k, v = (heads(t).flatten(0, 1) for t in (m.q(flat(h)), m.k(flat(c)[:, ::2]), m.v(flat(c)[:, ::2])))
    y = torch.bmm((torch.bmm(q, k.transpose(1, 2)) / 2).softmax(-1), v)
    return h + grid(y.view(-1, 2, HEIGHT * WIDTH, 2).transpose(1, 2).flatten(2))


def beside(m: Net, h: Tensor, c: Tensor) -> Tensor:
    return m.linear(torch.cat([h, c], -1))


Part = Callable[..., Tensor]
PARTS: dict[str, tuple[Part, dict[str, Any]]] = {
    "added": (lambda g, h, x, m: h + g.same(m), MAP),
    "scaled and shifted": (lambda g, h, x, m: h * (1 + g.same(m)) + g.same(m)[:, :1], MAP),
    "gate": (lambda g, h, x, m: h.tanh() * g.same(m).sigmoid(), MAP),
    "least": (lambda g, h, x, m: torch.minimum(g.same(m), h), MAP),
    "quotient": (lambda g, h, x, m: h / (g.same(m)[..., 1:2].exp() + 1), MAP),
    "down and up": (lambda g, h, x, m: h + g.up(g.down(m)), MAP),
    "codes, transposed": (lambda g, h, x, t: h + g.up(g.embed(t).movedim(3, 1)), GRID),
    "codes, nearest": (lambda g, h, x, t: h * F.interpolate(g.embed(t).movedim(3, 1), scale_factor=2), GRID),
    "one channel": (lambda g, h, x, m: h + g.narrow(m), MAP),
    "rows and columns": (lambda g, h, x, m: h + g.same(m)[..., 1:2] * g.same(m)[:, :, 2:3], MAP),
    "one channel of the image": (lambda g, h, x, m: h[:, :1].expand(-1, 4, -1, -1) + g.same(m), MAP),
    "more channels": (lambda g, h, x, m: h[:, 1:2] * g.same(m), MAP),
    "shifted": (lambda g, h, x, m: F.pad(h + g.same(m), (1, -1)), MAP),
    "cropped": (lambda g, h, x, m: F.pad(h[:, :, :-1] * g.same(m)[:, :, 1:], (0, 0, 1, 0)), MAP),
    "split axes": (
        lambda g, h, x, m: (
            (h.view(-1, 2, 2, HEIGHT, WIDTH) + g.same(m).view(-1, 2, 2, HEIGHT, WIDTH)[:, :1]).flatten(1, 2)
        ),
        MAP,
    ),
    "concatenated": (lambda g, h, x, m: g.join(torch.cat([g.same(m), h], 1)), MAP),
    "under taps": (
        lambda g, h, x, m: g.taps(F.pad(torch.cat([h, g.same(m)], 1), (2, 0, 1, 0))),
        MAP,
    ),
    "itself beside levels": (
        lambda g, h, x, m: h + g.raw(F.pad(torch.cat([x.to(h.dtype), m.to(h.dtype)], 1), (2, -1))),
        MAP,
    ),
    "stacked": (
        lambda g, h, x, m: torch.stack([g.same(m), h], 2).tanh()[:, :, 1] + torch.stack([h, g.same(m)], 1)[:, 1],
        MAP,
    ),
    "channels last": (lambda g, h, x, m: (last(h) + last(g.same(m))).movedim(3, 1), MAP),
    "concatenated last": (lambda g, h, x, m: beside(g, last(h), last(g.same(m))).movedim(3, 1), MAP),
    "flattened": (lambda g, h, x, m: (h.flatten(2) + g.same(m).flatten(2)).view(h.shape), MAP),
    "sequence": (lambda g, h, x, m: grid(flat(h) * flat(g.same(m))), MAP),
    "sequence, concatenated": (lambda g, h, x, m: grid(beside(g, flat(h), flat(g.same(m)))), MAP),
    "rows of a matrix": (
        lambda g, h, x, m: grid(
            beside(g, flat(h).reshape(-1, 4), flat(g.same(m)).reshape(-1, 4)).view(-1, HEIGHT * WIDTH, 4)
        ),
        MAP,
    ),
    "positions first": (
        lambda g, h, x, m: (
            (h.flatten(2).permute(2, 0, 1) + g.same(m).flatten(2).permute(2, 0, 1)).permute(1, 2, 0).view(h.shape)
        ),
        MAP,
    ),
    "positions first, rows": (
        lambda g, h, x, m: (
            (h.flatten(2).permute(2, 0, 1).flatten(0, 1) + g.same(m).flatten(2).permute(2, 0, 1).flatten(0, 1))
            .view(HEIGHT * WIDTH, -1, 4)
            .permute(1, 2, 0)
            .view(h.shape)
        ),
        MAP,
    ),
    "batch and channels": (lambda g, h, x, m: (h.flatten(0, 1) * g.same(m).flatten(0, 1)).view(h.shape), MAP),
    "keys and values": (lambda g, h, x, m: fused(g, h, x, g.same(m)), MAP),
    "keys and values, spelled": (lambda g, h, x, m: spelled(g, h, x, g.same(m)), MAP),
    "keys and values, transposed": (lambda g, h, x, m: transposed(g, h, x, g.same(m)), MAP),
    "keys and values, heads merged": (lambda g, h, x, m: merged(g, h, x, g.same(m)), MAP),
    "keys and values, fewer": (lambda g, h, x, t: spelled(g, h, x, g.embed(t).movedim(3, 1)), GRID),
    "mask": (lambda g, h, x, b: h * b + g.same.bias.view(-1, 1, 1) * ~b, MASK),
    "masked levels": (lambda g, h, x, b: h + g.first(F.pad((x * b).to(h.dtype), (2, -1))), MASK),
    "one-hot": (lambda g, h, x, o: h + g.vector(o)[:, :, None, None], ONE_HOT),
    "one-hot, concatenated": (
        lambda g, h, x, o: g.join(torch.cat([h, g.vector(o)[:, :, None, None].expand_as(h)], 1)),
        ONE_HOT,
    ),
    "number": (lambda g, h, x, s: h * s.view(-1, 1, 1, 1), {"s": torch.float32}),
    "number by example": (lambda g, h, x, y: h + g.embed(y)[:, :, None, None], {"y": torch.tensor(2)}),
    "two": (lambda g, h, x, m, t: h + g.same(m) + g.up(g.embed(t).movedim(3, 1)), GRID | MAP),
    "colour 0 by the condition alone": (
        lambda g, h, x, m: g.same(m) + h * torch.tensor([0.0, 1, 0, 1]).view(4, 1, 1),
        MAP,
    ),
}  # fmt: skip


@functools.cache
def compiled(name: str) -> tuple[Net, pf.Sampler]:
    part, conditions = PARTS[name]
    net = Net(part).eval()
    return net, pf.compile(net, shape=SHAPE, conditions=conditions)


@pytest.mark.parametrize("name", PARTS)
def test_a_condition_enters_anywhere(name):
    """The module's own log_prob of drawn images, several conditions in a batch; and the reference's bits."""
    net, sampler = compiled(name)
    assert sampler.verify() < 1e-4
    given = draw(PARTS[name][1], 4)
    out = sampler.sample(4, conditions=given, seed=3)
    with torch.no_grad():
        wanted = net.head.log_prob(net(out.images.long(), **given), out.images.long())
    torch.testing.assert_close(out.log_prob, wanted, rtol=0, atol=1e-4 * HEIGHT * WIDTH)
    assert torch.equal(sampler.log_prob(out.images, conditions=given), out.log_prob)
    others = draw(PARTS[name][1], 1, seed=7)
    assert not torch.equal(out.log_prob[:1], sampler.log_prob(out.images[:1], conditions=others))
    two = {key: value[:2] for key, value in given.items()}
    skew = find_skew(sampler._plan)
    for order in (raster(SHAPE), wavefront(SHAPE, skew)):
        schedule = _schedule(sampler._plan, order)
        reference = recompile(sampler, schedule, backend="reference").sample(2, conditions=two, seed=3)
        got = recompile(sampler, schedule).sample(2, conditions=two, seed=3)
        for one in (reference, got):
            assert torch.equal(one.images, out.images[:2])
            assert torch.equal(one.log_prob, out.log_prob[:2])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["under taps", "keys and values", "rows of a matrix"])
def test_every_instruction_set_gives_the_same_bits(name, isa):
    _, sampler = compiled(name)
    given = draw(PARTS[name][1], 3)
    out = sampler.sample(3, conditions=given)
    got = recompile(sampler, sampler.schedule, isa=isa).sample(3, conditions=given)
    assert torch.equal(got.images, out.images)
    assert torch.equal(got.log_prob, out.log_prob)


REFUSED: dict[str, tuple[Part, str]] = {
    "a convolution for each image": (
        lambda g, h, x, m: F.conv2d(
            h.view(1, -1, HEIGHT, WIDTH), g.same(m).mean((2, 3)).view(-1, 1, 1, 1), groups=2 * 4
        ).view(h.shape),
        "the weights depend on the image or on a condition",
    ),
    "a matrix for each image": (
        lambda g, h, x, m: grid(flat(h) @ g.same(m).flatten(2)[..., :4]),
        "a product of two tensors that are not constant is taken for the scores of attention",
    ),
    "a matrix for each image, channels last": (
        lambda g, h, x, m: (last(h) @ g.same(m).flatten(2)[:, None, :, :4]).movedim(3, 1),
        r"axes nyxc with a matrix that depends on a condition, of shape \(2, 1, 4, 4\); supported is attention",
    ),
    "scores": (
        lambda g, h, x, m: h + grid((flat(h) @ flat(h).mT + g.narrow(m).flatten(2)).softmax(-1) @ flat(h)),
        "the scores of attention meet a condition; supported are constants",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_condition_cannot_be_is_refused(name):
    part, match = REFUSED[name]
    with pytest.raises(pf.LoweringError, match=match):
        pf.compile(Net(part), shape=SHAPE, conditions=MAP)


# --- heads --------------------------------------------------------------------------------------------------


class Direct(nn.Module):
    """The parameters of the head are those of the image and of the condition, added, or side by side."""

    def __init__(self, head: Any, colours: int, own: int, of_condition: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.added = head, own == of_condition > 1
        self.image, self.condition = nn.Conv2d(colours, own, (2, 1)), nn.Conv2d(1, of_condition, 3, padding=1)

    def forward(self, images: Tensor, m: Tensor) -> Tensor:
        a, b = self.image(F.pad(images.float() / 2, (0, 0, 2, -1))), self.condition(m)
        found = a + b if self.added else torch.cat([a, b], 1)
        if isinstance(self.head, pf.heads.Categorical):
            return found.view(found.shape[0], self.head.levels, -1, *found.shape[2:])
        return found


@pytest.mark.parametrize(
    ("head", "colours", "own", "of_condition"),
    [
        (pf.heads.Categorical(3), 2, 6, 6),
        (pf.heads.Categorical(3), 1, 1, 2),
        (pf.heads.Bernoulli(), 2, 1, 1),
        (pf.heads.LogisticMixture(2, levels=6), 1, 6, 6),
        (pf.heads.LogisticMixture(2, levels=6), 1, 4, 2),
        (pf.heads.LogisticMixture(2, levels=4), 3, 5, 15),
    ],
)
def test_parameters_come_from_conditions(head, colours, own, of_condition):
    shape = (colours, 3, 4)
    module = Direct(head, colours, own, of_condition)
    sampler = pf.compile(module, shape=shape, conditions={"m": torch.zeros(1, 3, 4)})
    assert sampler.verify() < 1e-4
    given = {"m": 3 * torch.randn(3, 1, 3, 4)}
    out = sampler.sample(3, conditions=given)
    with torch.no_grad():
        wanted = module.head.log_prob(module(out.images.long(), **given), out.images.long())
    torch.testing.assert_close(out.log_prob, wanted, rtol=0, atol=1e-3)
    reference = recompile(sampler, sampler.schedule, backend="reference").sample(3, conditions=given)
    assert torch.equal(reference.images, out.images)
    assert torch.equal(reference.log_prob, out.log_prob)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
def test_narrow_maps(size):
    module = Direct(pf.heads.Categorical(3), 1, 3, 3)
    sampler = pf.compile(module, shape=(1, *size), conditions={"m": torch.zeros(1, *size)})
    given = {"m": torch.randn(4, 1, *size)}
    out = sampler.sample(4, conditions=given)
    with torch.no_grad():
        wanted = module.head.log_prob(module(out.images.long(), **given), out.images.long())
    torch.testing.assert_close(out.log_prob, wanted, rtol=0, atol=1e-4)


# --- values -------------------------------------------------------------------------------------------------


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


# --- a hierarchy --------------------------------------------------------------------------------------------


class Bottom(nn.Module):
    """A gated PixelCNN (van den Oord et al. 2016) over 8x8 codes, given 4x4 codes (Razavi et al. 2019, section 3.2)."""

    def __init__(self, top: int = 6, levels: int = 8, hidden: int = 5, layers: int = 2) -> None:
        super().__init__()
        self.levels, self.channels, self.head = levels, 1, pf.heads.Categorical(levels)
        self.embed_top, self.embed = nn.Embedding(top, hidden), nn.Embedding(levels, hidden)
        self.stack = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(hidden, hidden, 4, 2, 1),
            nn.ReLU(),
        )
        sizes = [hidden] * layers
        self.above = nn.ModuleList(nn.Conv2d(h, 2 * hidden, (2, 3)) for h in sizes)
        self.left = nn.ModuleList(nn.Conv2d(h, 2 * hidden, (1, 2)) for h in sizes)
        self.mix = nn.ModuleList(nn.Conv2d(2 * hidden, 2 * hidden, 1) for _ in sizes)
        self.given = nn.ModuleList(nn.Conv2d(hidden, 2 * hidden, 1) for _ in sizes)
        self.out = nn.ModuleList(nn.Conv2d(hidden, hidden, 1) for _ in sizes)
        self.last = nn.Conv2d(2 * hidden, levels, 1)

    def forward(self, images: Tensor, top: Tensor) -> Tensor:
        c = self.stack(self.embed_top(top).permute(0, 3, 1, 2))
        v = h = self.embed(images[:, 0]).permute(0, 3, 1, 2)
        for i, (above, left, mix, given, out) in enumerate(
            zip(self.above, self.left, self.mix, self.given, self.out, strict=True)
        ):
            v = above(F.pad(v, (1, 1, 2, -1) if i == 0 else (1, 1, 1, 0)))
            own = left(F.pad(h, (2, -1) if i == 0 else (1, 0))) + mix(v) + given(c)
            h = out(gate(own)) if i == 0 else h + out(gate(own))
            v = gate(v + given(c))
        return self.last(torch.relu(torch.cat([h, c], 1))).unsqueeze(2)


def gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()


def test_a_hierarchical_prior_end_to_end():
    torch.manual_seed(0)
    prior = pf.models.PixelCNN(channels=1, levels=6, hidden=6, layers=2)
    prior = loud(prior, prior.last, (1, 4, 4))
    bottom = Bottom().eval()
    with torch.no_grad():
        bottom.last.weight.mul_(4)
    of_top = pf.compile(prior, shape=(1, 4, 4))
    of_bottom = pf.compile(bottom, shape=(1, 8, 8), conditions={"top": torch.zeros(4, 4, dtype=torch.int64)})
    assert of_bottom.verify() < 1e-4
    top = of_top.sample(5, seed=1)
    codes = top.images[:, 0]
    assert len(torch.unique(codes, dim=0)) > 1
    out = of_bottom.sample(5, conditions={"top": codes}, seed=2)
    with torch.no_grad():
        wanted = bottom.head.log_prob(bottom(out.images.long(), codes.long()), out.images.long())
    torch.testing.assert_close(out.log_prob, wanted, rtol=0, atol=1e-3)
    assert torch.equal(of_bottom.log_prob(out.images, conditions={"top": codes}), out.log_prob)
    reference = recompile(of_bottom, of_bottom.schedule, backend="reference")
    one = reference.sample(1, conditions={"top": codes[3]}, seed=2, first_index=3)
    assert torch.equal(one.images[0], out.images[3])
    assert one.log_prob[0] == out.log_prob[3]
