"""Random chains of what moves, masks and joins values, on small grids whose sizes are easily mistaken for each other.

Scores of random images are compared with the module's own. That needs no causality, so anything may follow anything.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import recompile, scorer

import pixelfast as pf

LEVELS, SEEDS = 3, 30


class Chain(nn.Module):
    """A convolution, then the steps one after another, then logits."""

    def __init__(self, shape: tuple[int, int, int], channels: int, steps: list[Callable[[Tensor], Tensor]]):
        super().__init__()
        self.head, self.shape, self.steps = pf.heads.Categorical(LEVELS), shape, steps
        self.first = nn.Conv2d(shape[0], channels, (2, 2))
        self.last = nn.Conv2d(channels, LEVELS * shape[0], 1)

    def forward(self, images: Tensor) -> Tensor:
        h = self.first(F.pad(images.to(self.last.weight.dtype), (1, 0, 1, 0)))
        for step in self.steps:
            h = step(h)
        return self.last(h).view(-1, LEVELS, *self.shape)


def assert_scored(module: Chain, seed: int) -> bool:
    """Return whether the chain is planned at all; where it is, its scores must be right."""
    images = torch.randint(0, LEVELS, (4, *module.shape), generator=torch.Generator().manual_seed(seed))
    try:
        reference = scorer(module.eval(), module.shape)
    except pf.LoweringError:
        return False
    with torch.no_grad():
        want = module.head.log_prob(module(images), images)
    got = recompile(reference, reference.schedule).log_prob(images)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3, msg=lambda text: f"seed {seed}: {text}")
    return True


# --- layouts --------------------------------------------------------------------------------------------------


def split(rng: random.Random, n: int) -> list[int]:
    """Factors of n, ones among them."""
    if n == 1:
        return rng.choice([[], [1]])
    every = (t for k in range(1, 4) for t in itertools.product([1, 2, 3, 4, 6, 8], repeat=k))
    return list(rng.choice([t for t in every if math.prod(t) == n]))


def layouts(rng: random.Random, shape: list[int]) -> list[Callable[[Tensor], Tensor]]:
    """Permutations, reshapes, and constants of any shape in between; then all back. shape: without the batch."""
    sizes: list[int] = [-1, *shape]  # -1: the batch
    steps: list[Callable[[Tensor], Tensor]] = []
    back: list[Callable[[Tensor], Tensor]] = []
    for _ in range(rng.randint(1, 4)):
        kind = rng.choice(["permute", "reshape", "unsqueeze", "scale", "fill", "choose"])
        if kind == "permute":
            order = rng.sample(range(len(sizes)), len(sizes))
            steps.append(lambda h, order=order: h.permute(order))
            back.append(lambda h, order=order: h.permute([order.index(i) for i in range(len(order))]))
            sizes = [sizes[i] for i in order]
        elif kind == "reshape":
            at, old = sizes.index(-1), sizes
            sizes = [*split(rng, math.prod(old[:at])), -1, *split(rng, math.prod(old[at + 1 :]))]
            steps.append(lambda h, new=sizes: h.reshape(new))
            back.append(lambda h, old=old: h.reshape(old))
        elif kind == "unsqueeze":
            at = rng.randint(0, len(sizes))
            sizes = [*sizes[:at], 1, *sizes[at:]]
            steps.append(lambda h, at=at: h.unsqueeze(at))
            back.append(lambda h, at=at: h.squeeze(at))
        else:
            some = [1 if s == -1 or rng.random() < 0.4 else s for s in sizes]
            steps.append(met(rng, kind, some))
    return [*steps, *reversed(back)]


def met(rng: random.Random, kind: str, shape: list[int]) -> Callable[[Tensor], Tensor]:
    """What a constant of that shape does."""
    generator = torch.Generator().manual_seed(rng.randrange(1000))
    values = torch.randn(shape, generator=generator)
    filler = rng.choice([0.0, 0.7, -math.inf])
    if kind == "scale":
        return lambda h: h * values.to(h.dtype)
    if kind == "fill":
        return lambda h: h.masked_fill(values > 0, filler).sigmoid()
    return lambda h: torch.where(values > 0, h, h * h)


def test_layouts():
    shapes = [(1, 2, 2), (2, 2, 2), (1, 1, 2), (1, 2, 1), (1, 3, 2), (1, 4, 2), (2, 1, 1)]
    planned = 0
    for seed in range(SEEDS):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        shape, channels = rng.choice(shapes), rng.choice([1, 2, 4])
        planned += assert_scored(Chain(shape, channels, layouts(rng, [channels, *shape[1:]])), seed)
    assert planned == SEEDS


# --- moves ----------------------------------------------------------------------------------------------------


def _mask(h: Tensor, rng: random.Random) -> Tensor:
    sizes = [rng.choice([1, s]) for s in h.shape[1:]]
    return torch.rand(sizes, generator=torch.Generator().manual_seed(rng.randrange(1000))) < 0.6


def attended(h: Tensor) -> Tensor:
    tokens = h.flatten(2).transpose(1, 2)
    n = tokens.shape[1]
    scores = (tokens @ F.pad(h, (1, 0))[..., :-1].flatten(2)).masked_fill(
        torch.ones(n, n).triu(1).bool(), -1e9
    )
    return (scores.softmax(-1) @ tokens).transpose(1, 2).reshape(h.shape)


def written(h: Tensor, at: int) -> Tensor:
    y = torch.zeros_like(h)
    y[:, :, at:] = h[:, :, : h.shape[2] - at]
    return y


def strided(h: Tensor) -> Tensor:
    kernel = torch.ones(h.shape[1], h.shape[1], 2, 1) / 4
    return F.conv_transpose2d(h[:, :, ::2], kernel, stride=(2, 1))[:, :, : h.shape[2]]


MOVES: dict[str, Callable[[Tensor, random.Random], Tensor]] = {
    "shifted down": lambda h, r: F.pad(h, (0, 0, 1, 0))[:, :, :-1],
    "shifted right": lambda h, r: F.pad(h, (1, 0))[..., :-1],
    "shifted left": lambda h, r: F.pad(h, (0, 1))[..., 1:],
    "masked": lambda h, r: h.masked_fill(_mask(h, r), 0),
    "chosen": lambda h, r: torch.where(_mask(h, r), h, h.flip(1)),
    "channels masked": lambda h, r: h * (torch.arange(h.shape[1]) % 2).view(-1, 1, 1),
    "flattened": lambda h, r: h.flatten(2).transpose(1, 2).tanh().transpose(1, 2).reshape(h.shape),
    "flattened, masked": lambda h, r: (h.flatten(2) * _mask(h, r)[0].expand(h.shape[2:]).flatten()).view(h.shape),
    "a token later": lambda h, r: torch.cat([0 * h.flatten(2)[..., :1], h.flatten(2)[..., :-1]], 2).view(h.shape),
    "columns in turn": lambda h, r: h.transpose(2, 3).flatten(2).reshape(h.transpose(2, 3).shape).transpose(2, 3),
    "rolled": lambda h, r: h.roll((1, 1), (2, 3)),
    "rows turned": lambda h, r: torch.cat([h[:, :, i : i + 1] for i in reversed(range(h.shape[2]))], 2),
    "rows one by one": lambda h, r: torch.stack([h[:, :, i] for i in range(h.shape[2])], 2),
    "written": lambda h, r: written(h, r.randrange(h.shape[2])),
    "joined": lambda h, r: torch.cat([F.pad(h, (1, 0))[..., :-1], h], 1)[:, 1 : 1 + h.shape[1]],
    "attended": lambda h, r: attended(h),
    "strided and back": lambda h, r: strided(h),
    "doubled": lambda h, r: h.repeat_interleave(2, 2)[:, :, : h.shape[2]],
    "windows": lambda h, r: F.pad(h, (2, 0)).unfold(3, 3, 1).sum(-1) / 3,
    "largest": lambda h, r: F.max_pool2d(h, 3, 1, 1),
    "each channel alone": lambda h, r: F.conv2d(h, torch.ones(h.shape[1], 1, 3, 3) / 9, padding=1, groups=h.shape[1]),
    "mixed by rows": lambda h, r: h.tanh() @ torch.ones(h.shape[3], h.shape[3]).tril(-1),
    "as a vector": lambda h, r: h + h.flatten(1).masked_fill(torch.arange(h[0].numel()) % 2 > 0, 0).view(h.shape),
}  # fmt: skip


def test_moves():
    shapes = [(1, 2, 2), (1, 4, 4), (1, 3, 4), (2, 4, 2), (1, 1, 4), (1, 4, 1), (1, 3, 3)]
    planned = 0
    for seed in range(SEEDS):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        chosen = [(rng.choice(list(MOVES)), rng.randrange(1000)) for _ in range(rng.randint(2, 5))]
        steps = [lambda h, n=name, s=own: MOVES[n](h, random.Random(s)) for name, own in chosen]
        planned += assert_scored(Chain(rng.choice(shapes), rng.choice([2, 4]), steps), seed)
    assert planned >= 0.9 * SEEDS


@pytest.mark.parametrize("name", MOVES)
def test_each_move(name):
    torch.manual_seed(0)
    assert assert_scored(Chain((1, 4, 4), 4, [lambda h: MOVES[name](h, random.Random(1))]), 0)
