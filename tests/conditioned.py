"""Models that are conditioned in every way there is, compiled once each, for the tests of conditions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pixelfast as pf

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
    "chosen by a mask": (lambda g, h, x, b: torch.where(b, h, g.first.bias.view(-1, 1, 1)), MASK),
    "filled by a mask": (lambda g, h, x, b: h.masked_fill(~b, 0.3), MASK),
    "tokens before those of the image": (
        lambda g, h, x, t: grid(
            torch.cat([g.embed(t).flatten(1, 2)[:, :2], flat(h)[:, :-2]], 1) + flat(h)
        ),
        GRID,
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
