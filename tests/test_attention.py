"""Attention in its many spellings: recognised, planned, and drawn to the bit on every rung."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ISAS, assert_same_on, recompile

import pixelfast as pf
from pixelfast import links
from pixelfast.plan import AttendOp, ConvOp, Keys, Read

LEVELS, HEADS, WIDTH = 3, 2, 6  # of attention: channels of all heads


def causal(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


class Attention(nn.Module):
    """(N, L, D) to the same; `spell` makes it of queries, keys and values (N, heads, L, D / heads)."""

    def __init__(self, spell):
        super().__init__()
        self.spell = spell
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        parts = self.project(x).view(n, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        y = self.spell(parts[0], parts[1], parts[2])
        return self.out(y.transpose(1, 2).reshape(n, length, WIDTH))


def weighed(q: Tensor, k: Tensor, v: Tensor, mask) -> Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return F.softmax(mask(scores), -1) @ v


def sdpa(mask, **options):
    def spell(q, k, v):
        given_ = None if mask is None else mask(q.shape[2])
        return F.scaled_dot_product_attention(q, k, v, given_, **options)

    return spell


def filled(value: float):
    return lambda q, k, v: weighed(q, k, v, lambda s: s.masked_fill(~causal(s.shape[-1]), value))


def added(q, k, v):
    return weighed(q, k, v, lambda s: s + (1 - causal(s.shape[-1]).float()) * -1e10)


def multiplied(q, k, v):
    def mask(s):
        keep = causal(s.shape[-1]).float()
        return s * keep - (1 - keep) * 1e4

    return weighed(q, k, v, mask)


def chosen(q, k, v):
    return weighed(
        q, k, v, lambda s: torch.where(causal(s.shape[-1]), s, torch.tensor(torch.finfo(s.dtype).min))
    )


def einsum(q, k, v):
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k).masked_fill(~causal(q.shape[2]), -torch.inf)
    return torch.einsum("bhqk,bhkd->bhqd", (scores * 0.5).softmax(-1), v)


def merged(q, k, v):
    """Heads in the batch, as in older code."""
    n, heads, length, d = q.shape
    q, k, v = (t.reshape(n * heads, length, d) for t in (q, k, v))
    bias = torch.zeros(n * heads, length, length).masked_fill(~causal(length), -1e9)
    weights = torch.softmax(torch.baddbmm(bias, q, k.transpose(1, 2), alpha=0.7), 2)
    return torch.bmm(weights, v).view(n, heads, length, d)


def keys_first(q, k, v):
    """Channels before positions, and the softmax over the first axis of the matrix."""
    scores = (k @ q.transpose(-2, -1)).masked_fill(~causal(q.shape[2]).T, -torch.inf)
    return (v.transpose(-2, -1) @ scores.softmax(-2)).transpose(-2, -1)


def biased(q, k, v):
    """A bias by distance for each head (Press et al. 2022)."""
    at = torch.arange(q.shape[2])
    distance = (at[None] - at[:, None]).float() * torch.tensor([0.5, 0.25])[:, None, None]
    return weighed(q, k, v, lambda s: (s + distance).masked_fill(~causal(s.shape[-1]), -torch.inf))


def windows(q, k, v):
    """Each head sees the past, one of them not far."""
    n = q.shape[2]
    near = causal(n) & ~torch.ones(n, n, dtype=torch.bool).tril(-3)
    mask = torch.stack([causal(n), near])
    return F.scaled_dot_product_attention(q, k, v, mask)


def strict(q, k, v):
    """Earlier positions only; the first query has none, and its row is cut (Chen et al. 2018)."""
    n = q.shape[2]
    earlier = causal(n) & ~torch.eye(n, dtype=torch.bool)
    scores = (q @ k.transpose(2, 3)).masked_fill(~earlier, -1e4)
    start = torch.ones(n, 1)
    start[0] = 0
    return (scores.softmax(3) * start) @ v


SPELLINGS = {
    "sdpa": sdpa(None, is_causal=True),
    "sdpa, mask": sdpa(causal, scale=0.3),
    "sdpa, no scores": sdpa(causal, scale=0.0),
    "sdpa, bias": sdpa(lambda n: torch.zeros(n, n).masked_fill(~causal(n), -torch.inf)),
    "filled with -inf": filled(-torch.inf),
    "filled with -1e4": filled(-1e4),
    "added": added,
    "multiplied": multiplied,
    "chosen": chosen,
    "einsum": einsum,
    "merged": merged,
    "keys first": keys_first,
    "biased": biased,
    "windows": windows,
    "strict": strict,
}


class Transformer(nn.Module):
    """Over raster tokens, the colours of a pixel one after another."""

    def __init__(self, attention: nn.Module, shape: tuple[int, int, int], outputs: int = LEVELS):
        super().__init__()
        torch.manual_seed(0)
        self.length, self.outputs = math.prod(shape), outputs
        self.tokens, self.positions = (
            nn.Embedding(LEVELS, WIDTH),
            nn.Parameter(torch.randn(self.length, WIDTH)),
        )
        self.attention, self.last = attention, nn.Linear(WIDTH, outputs)
        for p in self.parameters():
            nn.init.normal_(p, std=0.7)

    def forward(self, images: Tensor) -> Tensor:
        n, c, height, width = images.shape
        x = self.tokens(images.permute(0, 2, 3, 1).reshape(n, -1))
        x = F.pad(x[:, :-1], (0, 0, 1, 0)) + self.positions
        x = self.last(x + self.attention(x))
        return x.view(n, height, width, c, self.outputs).permute(0, 4, 3, 1, 2)


class Whole(nn.Module):
    """PyTorch's own layer."""

    def __init__(self, first: bool, need_weights: bool):
        super().__init__()
        self.first, self.need = first, need_weights
        self.layer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=first)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else x.transpose(0, 1)
        y, _ = self.layer(x, x, x, attn_mask=~causal(self.layer_length(x)), need_weights=self.need)
        return y if self.first else y.transpose(0, 1)

    def layer_length(self, x: Tensor) -> int:
        return x.shape[1 if self.first else 0]


@functools.cache
def compiled(spelling: str, shape: tuple[int, int, int]) -> pf.Sampler:
    wholes = {"layer": (True, False), "layer, weights": (True, True), "layer, batch second": (False, True)}
    attention = Whole(*wholes[spelling]) if spelling in wholes else Attention(SPELLINGS[spelling])
    model = Transformer(attention, shape).eval()
    return pf.compile(model, shape=shape, head=pf.heads.Categorical(LEVELS), backend="reference")


EVERY = [*SPELLINGS, "layer", "layer, weights", "layer, batch second"]


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 2, 2)], ids=str)
@pytest.mark.parametrize("spelling", EVERY)
def test_spellings(spelling, shape):
    reference = compiled(spelling, shape)
    reference.verify()
    assert sum(isinstance(op, AttendOp) for op in reference.schedule.plan.ops) == 1
    want = reference.sample(2, seed=5)
    got = recompile(reference, reference.schedule).sample(2, seed=5)
    assert torch.equal(got.images, want.images)
    assert torch.equal(got.log_prob, want.log_prob)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("spelling", ["sdpa", "windows", "strict"])
def test_every_rung(spelling, isa):
    assert_same_on(compiled(spelling, (1, 3, 4)), isa, seed=6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(3, 1, 1), (2, 1, 1), (2, 1, 3), (2, 3, 1)], ids=str)
@pytest.mark.parametrize("head", [pf.heads.Categorical(LEVELS), pf.heads.Bernoulli()], ids=["levels", "bits"])
def test_colours_of_few_pixels(shape, head, isa):
    """Of a single pixel they are the whole sequence, which a reshape to its grid leaves as it is."""
    levels = isinstance(head, pf.heads.Categorical)
    model = Transformer(Attention(SPELLINGS["sdpa"]), shape, LEVELS if levels else 1)
    model = (model if levels else nn.Sequential(model, nn.Flatten(1, 2))).eval()
    reference = pf.compile(model, shape=shape, head=head, backend="reference")
    reference.verify()
    assert_same_on(reference, isa, seed=6)


class Shared(nn.Module):
    """All heads ask the same keys and values (Shazeer 2019), of one product with the queries or of their own."""

    def __init__(self, fused: bool):
        super().__init__()
        self.fused, size = fused, WIDTH // HEADS
        self.project = nn.Linear(WIDTH, WIDTH + 2 * size)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        size = WIDTH // HEADS
        if self.fused:
            parts = self.project(x).split([WIDTH, size, size], -1)
        else:
            sizes = [WIDTH, size, size]
            pairs = zip(self.project.weight.split(sizes), self.project.bias.split(sizes), strict=True)
            parts = [F.linear(x, w, b) for w, b in pairs]
        q = parts[0].view(n, length, HEADS, size).transpose(1, 2)
        k, v = (t.view(n, length, 1, size).transpose(1, 2).expand(-1, HEADS, -1, -1) for t in parts[1:])
        return sdpa(causal)(q, k, v).transpose(1, 2).reshape(n, length, WIDTH)


def test_shared_keys_and_values_are_computed_once():
    compiled = [
        pf.compile(
            Transformer(Shared(fused), (1, 3, 4)).eval(), shape=(1, 3, 4), head=pf.heads.Categorical(LEVELS)
        )
        for fused in (True, False)
    ]
    assert compiled[0].multiply_adds == compiled[1].multiply_adds
    assert max(sampler.verify() for sampler in compiled) < 1e-4


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 15, 16, 40])
def test_widths(channels, isa):
    """Sums of fewer and more channels than there are lanes, values wider than a register tile."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(WIDTH, w) for w in (channels, channels, 5 * channels))
            self.out = nn.Linear(5 * channels, WIDTH)

        def forward(self, x):
            return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), is_causal=True))

    model = Transformer(Wide(), (1, 4, 5)).eval()
    sampler = pf.compile(model, shape=(1, 4, 5), head=pf.heads.Categorical(LEVELS), isa=isa)
    sampler.verify()
    want = recompile(sampler, sampler.schedule, backend="reference").sample(1, seed=3)
    got = sampler.sample(1, seed=3)
    assert torch.equal(got.images, want.images)
    assert torch.equal(got.log_prob, want.log_prob)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("heads", "channels"), [(9, 3), (5, 20), (3, 35), (2, 72)])
def test_heads(heads, channels, isa):
    """More heads than are taken together, of widths that fill no whole number of vectors."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.project, self.out = (
                nn.Linear(WIDTH, 3 * heads * channels),
                nn.Linear(heads * channels, WIDTH),
            )

        def forward(self, x):
            q, k, v = self.project(x).unflatten(2, (3, heads, channels)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out(y.transpose(1, 2).flatten(2))

    model = Transformer(Heads(), (1, 4, 5)).eval()
    reference = pf.compile(model, shape=(1, 4, 5), head=pf.heads.Categorical(LEVELS), backend="reference")
    assert_same_on(reference, isa, seed=4)


@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 4, 3)], ids=str)
def test_only_keys_and_values_are_kept(shape):
    sampler = compiled("sdpa", shape)
    plan, rings = sampler.schedule.plan, sampler.schedule.rings
    (op,) = (op for op in plan.ops if isinstance(op, AttendOp))
    for refs in (op.key, op.value):
        (m,) = np.unique(plan.map_of(refs)).tolist()
        assert rings[m].columns == plan.maps[m].width == math.prod(shape)
        assert rings[m].channels == plan.maps[m].channels == WIDTH
    (query,) = np.unique(plan.map_of(op.query)).tolist()
    assert rings[query].columns == rings[op.out].columns == 1
    row = shape[0] * shape[2]  # what goes from the sequence to the grid and back, by rows
    assert sampler.schedule.floats < 2 * math.prod(shape) * WIDTH + row * (6 * WIDTH + 6 * LEVELS)


def test_queries_are_scaled_where_they_are_made():
    plan = compiled("sdpa", (1, 3, 4)).schedule.plan
    at = next(i for i, op in enumerate(plan.ops) if isinstance(op, AttendOp))
    assert all(isinstance(op, ConvOp) for op in plan.ops[at - 3 : at])


def test_multiply_adds_count_what_is_attended_to():
    sampler = compiled("sdpa", (1, 3, 4))
    row = next(r for r in sampler.explain().rows if r.kind == "attend")
    assert row.multiply_adds == 12 * 13 // 2 * 2 * WIDTH
    cpu = recompile(sampler, sampler.schedule)
    cpu.sample(3)
    assert cpu._runtime.last_multiply_adds == 3 * sampler.multiply_adds


class Snail(nn.Module):
    """Convolutions on the grid, attention between them over flattened positions, coordinates beside the features."""

    def __init__(self, shape: tuple[int, int, int], strictly: bool = True, cut: bool = True):
        super().__init__()
        _, h, w = shape
        torch.manual_seed(1)
        self.above, self.left = nn.Conv2d(1, 4, (1, 3), padding=(0, 1)), nn.Conv2d(1, 4, (1, 2))
        self.query, self.key, self.value = nn.Conv2d(6, 3, 1), nn.Conv2d(7, 3, 1), nn.Conv2d(7, 5, 1)
        self.last = nn.Conv2d(9, LEVELS, 1)
        y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
        self.register_buffer("places", torch.stack([y, x])[None])
        n = h * w
        self.register_buffer("mask", causal(n).float().tril(-1 if strictly else 0)[None])
        self.register_buffer("start", torch.cat([torch.full((1, 1), float(not cut)), torch.ones(n - 1, 1)]))

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        above = F.pad(self.above(x)[:, :, :-1], (0, 0, 1, 0))
        h = F.elu(above + self.left(F.pad(x, (2, -1))))
        places = self.places.expand(n, -1, -1, -1)
        q = self.query(torch.cat([h, places], 1)).view(n, -1, height * width).transpose(1, 2)
        seen = torch.cat([h, places, x], 1)
        k, v = self.key(seen).flatten(2), self.value(seen).flatten(2).transpose(1, 2)
        scores = torch.bmm(q, k).masked_fill(self.mask == 0, -1e4)
        y = torch.bmm(torch.softmax(scores, 2) * self.start, v)
        y = y.transpose(1, 2).view(n, -1, height, width)
        return self.last(torch.cat([h, y], 1)).unsqueeze(2)


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 1, 4), (1, 5, 1)], ids=str)
def test_attention_between_convolutions(shape):
    model = Snail(shape).eval()
    options = {"shape": shape, "head": pf.heads.Categorical(LEVELS), "to_input": pf.inputs.scaled(-1, 1)}
    sampler = pf.compile(model, **options)
    sampler.verify()
    want = recompile(sampler, sampler.schedule, backend="reference").sample(2, seed=1)
    got = sampler.sample(2, seed=1)
    assert torch.equal(got.images, want.images)
    assert torch.equal(got.log_prob, want.log_prob)
    assert torch.equal(sampler.log_prob(got.images), got.log_prob)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Snail((1, 3, 4), strictly=False),
            r"pixel \(y=0, x=1\) depends on pixel \(y=0, x=1\).*its attention reads",
        ),
        (
            Snail((1, 3, 4), cut=False),
            r"pixel \(y=0, x=0\) depends on pixel \(y=2, x=3\).*no position at all",
        ),
    ],
    ids=["a mask with its diagonal", "a query without keys"],
)
def test_leaks_through_attention_are_found(model, message):
    model.start[0] += 0  # a row of weights that is not cut is uniform over the whole image
    with pytest.raises(pf.CausalityError, match=message):
        pf.compile(
            model.eval(), shape=(1, 3, 4), head=pf.heads.Categorical(LEVELS), to_input=pf.inputs.scaled(-1, 1)
        )


def shifted_by_queries(q, k, v):
    scores = q @ k.transpose(-2, -1)
    return (scores + q[..., :1]).softmax(-1) @ v


@pytest.mark.parametrize(
    ("spell", "message"),
    [
        (shifted_by_queries, "the scores of attention meet a View; supported are constants"),
        (lambda q, k, v: (q @ k.transpose(-2, -1)) @ v, "meet no softmax over positions before the product"),
        (lambda q, k, v: (q @ k.transpose(-2, -1)).softmax(1) @ v, "over c; supported are positions"),
        (
            lambda q, k, v: (q @ k.transpose(-2, -1)).relu() @ v,
            "it is done to the scores of attention; supported",
        ),
        (
            lambda q, k, v: q @ (k.transpose(-2, -1) @ v),
            "a product of tensors of axes nccx and ncxc that both depend",
        ),
        (
            lambda q, k, v: ((q @ k.transpose(-2, -1)).softmax(-1) * torch.eye(12).add(1)) @ v,
            "scaled by a constant that differs between the keys of a query",
        ),
        (
            lambda q, k, v: (q @ k.transpose(-2, -1)).softmax(-1).tril() @ v,
            "drops weights after the softmax, whose sum is over all keys",
        ),
        (
            lambda q, k, v: (q @ k.transpose(-2, -1)).softmax(-1).masked_fill(~causal(12), 0) @ v,
            "drops weights after the softmax, whose sum is over all keys",
        ),
        (
            lambda q, k, v: F.scaled_dot_product_attention(
                q, k, v, torch.stack([causal(12), causal(12).tril(-1)])
            ),
            "attend to nothing in one head, but not in another",
        ),
    ],
)
def test_what_is_not_attention_is_refused(spell, message):
    with pytest.raises(pf.LoweringError, match=message):
        pf.compile(
            Transformer(Attention(spell), (1, 3, 4)).eval(),
            shape=(1, 3, 4),
            head=pf.heads.Categorical(LEVELS),
        )


# --- keys and links -------------------------------------------------------------------------------------------

masks = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=5)
)


@given(masks)
def test_keys_are_runs_of_a_mask(mask):
    live = np.array(mask)
    keys = Keys.of(live)
    assert keys.counts.tolist() == live.sum(1).tolist()
    for q, row in enumerate(live):
        assert [k for a, b in keys.runs(q) for k in range(a, b)] == np.flatnonzero(row).tolist()


@given(masks, st.integers(0, 9))
def test_links_of_attention_follow_the_mask(mask, seed):
    live = np.array(mask)
    link = links.Attention(Read(0, 0, 0), Keys.of(live))
    rng = np.random.default_rng(seed)
    source, due = rng.integers(1, 9, live.shape[1]), rng.integers(1, 9, live.shape[0])
    into = np.zeros((1, len(live)), int)
    link.pull(np.maximum, source[None], into)
    assert into[0].tolist() == np.where(live, source, 0).max(1).tolist()
    into[:] = 0
    link.pull(np.maximum, source[None], into, limit=due[None])
    assert into[0].tolist() == np.where(live & (source <= due[:, None]), source, 0).max(1).tolist()
    first = np.full((1, live.shape[1]), 9)
    link.push(np.minimum, due[None], first)
    assert first[0].tolist() == np.where(live, due[:, None], 9).min(0).tolist()


# --- arithmetic, and what crosses into C++ --------------------------------------------------------------------
