"""Conditions that are numbers, vectors and maps: told to compile, checked, evaluated, and wherever they may enter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conditioned import (
    HEIGHT,
    MAP,
    PARTS,
    SHAPE,
    WIDTH,
    Net,
    Part,
    compiled,
    draw,
    flat,
    grid,
    last,
)
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ISAS, loud, recompile

import pixelfast as pf
from pixelfast.causality import find_skew
from pixelfast.orders import schedule_in
from pixelfast.readiness import raster, wavefront


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
        schedule = schedule_in(sampler._plan, order)
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
