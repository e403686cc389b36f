"""Heads: outputs in any layout, logits or probabilities, mixtures, functions, one of several outputs of forward."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as BernoulliOf
from torch.distributions import Categorical as CategoricalOf
from torch.distributions import Independent
from torch.nn import functional as F

import pixelfast as pf
from pixelfast.capture import capture, run
from pixelfast.heads import Bernoulli, Categorical, Custom, LogisticMixture
from pixelfast.outputs import Read, identities, settle
from pixelfast.runtime import Target

SIZES = {"n": 2, "k": 4, "c": 3, "h": 5, "w": 7}
# Layouts, and whether the shape alone says so: for three colours, and for one.
LAYOUTS = [
    ("n k c h w", True, True),
    ("n c k h w", True, True),
    ("n k h w c", True, True),
    ("n c h w k", True, True),
    ("n h w k c", True, True),
    ("n h w c k", True, True),
    ("n (k c) h w", False, True),
    ("n (c k) h w", False, True),
    ("n h w (k c)", False, True),
    ("n h w (c k)", False, True),
    ("n k c (h w)", True, True),
    ("n (h w) c k", True, True),
    ("n (h w) (c k)", False, True),
    ("n (h w c) k", False, True),
    ("n (c h w) k", False, True),
    ("n k (h w c)", False, True),
    ("(n h w) (c k)", False, True),
    ("(n h w c) k", False, True),
    ("n (k c h w)", False, False),
    ("n (k h) c w", False, False),
    ("n w h c k", False, False),
    ("k n c h w", False, False),
    ("n 1 c k h w", True, True),
]


def laid_out(params: Tensor, layout: str, axes: str = "nkchw") -> Tensor:
    """A tensor of these axes in another layout."""
    words = [(a or b).replace("1", "").split() for a, b in re.findall(r"\(([^()]*)\)|([^\s()]+)", layout)]
    moved = params.permute([axes.index(a) for word in words for a in word])
    sizes = dict(zip(axes, params.shape, strict=True))
    return moved.reshape([math.prod(sizes[a] for a in word) for word in words])


@pytest.mark.parametrize(("layout", "three", "one"), LAYOUTS)
@pytest.mark.parametrize("colours", [3, 1])
def test_layouts(layout, three, one, colours):
    params = torch.randn(2, 4, colours, 5, 7)
    images = torch.randint(0, 4, (2, colours, 5, 7))
    output = laid_out(params, layout)
    assert torch.equal(Categorical(4, layout=layout).read(output, images), params)
    if three if colours == 3 else one:
        assert torch.equal(Categorical(4).read(output, images), params)
    else:
        with pytest.raises(ValueError, match=r"\[Categorical\(levels=4\)\] params .*shape"):
            Categorical(4).read(output, images)


@pytest.mark.parametrize("layout", ["n k h w", "n h w k", "n (h w) k", "(n h w) k", "n k (h w)", "n k h w 1"])
def test_one_colour_has_no_axis(layout):
    params = torch.randn(2, 4, 1, 5, 7)
    images = torch.randint(0, 4, (2, 1, 5, 7))
    output = laid_out(params.squeeze(2), layout, "nkhw")
    for head in (Categorical(4), Categorical(4, layout=layout)):
        assert torch.equal(head.read(output, images), params)


@pytest.mark.parametrize(
    ("shape", "output", "layout"),
    [
        ((2, 1, 5, 7), (2, 1, 5, 7), None),
        ((2, 1, 5, 7), (2, 5, 7), None),
        ((2, 1, 5, 7), (2, 5, 7, 1), None),
        ((2, 1, 5, 7), (2, 35), None),
        ((2, 1, 5, 7), (70, 1), None),
        ((2, 1, 5, 7), (2, 5, 7), "n h w"),
        ((2, 1, 1, 7), (2, 7), "n w"),
        ((2, 1, 5, 1), (2, 5), "n h"),
        ((2, 3, 5, 7), (2, 3, 35), None),
        ((1, 1, 5, 7), (1, 5, 7), None),
        ((0, 1, 5, 7), (0, 5, 7), None),
    ],
)
def test_layouts_of_bernoulli(shape, output, layout):
    params = torch.randn(shape)
    got = Bernoulli(layout=layout).read(params.reshape(output), torch.zeros(shape, dtype=torch.int64))
    assert torch.equal(got, params)
    swapped = Bernoulli().read(params.permute(0, 2, 3, 1), torch.zeros(shape, dtype=torch.int64))
    assert torch.equal(swapped, params)


@pytest.mark.parametrize(
    ("layout", "output", "match"),
    [
        (None, (2, 12, 5, 7), r'may be "n \(k c\) h w" or "n \(c k\) h w"; pass layout='),
        (
            None,
            (2, 12, 7, 5),
            r"params must have shape \(2, 4, 3, 5, 7\), got \(2, 12, 7, 5\); the axes n=2, k=4,",
        ),
        (None, (2, 4, 3, 5), r"params must have shape"),
        ("n (c k) h", (2, 12, 5), r"must have the layout 'n \(c k\) h' with n=2, .*, got shape \(2, 12, 5\)"),
        ("n (c k) h w", (2, 12, 35), r"must have the layout .* got shape \(2, 12, 35\)"),
        ("n (c k h w", (2, 12, 35), r"layout must name axes among n, k, c, h, w once each"),
        ("n c c h w", (2, 12, 35), r"layout must name axes"),
        ("b c h w k", (2, 12, 35), r"layout must name axes"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(layout, output, match):
    with pytest.raises(ValueError, match=match):
        Categorical(4, layout=layout).read(torch.zeros(output), torch.zeros(2, 3, 5, 7, dtype=torch.int64))


# --- log probabilities, against formulas of their own ---------------------------------------------------------


def categorical(params: Tensor, level: int) -> float:
    return math.log(math.exp(params[level]) / sum(math.exp(p) for p in params))


def mixture(params: Tensor, level: int, levels: int) -> float:
    """M logits, M means, M log scales."""
    total = 0.0
    logits, means, scales = params.view(3, -1).tolist()
    for weight, mean, log_scale in zip(logits, means, scales, strict=True):
        share = math.exp(weight) / sum(math.exp(other) for other in logits)

        def below(edge: float, mean: float = mean, scale: float = math.exp(max(log_scale, -7))) -> float:
            return 1 / (1 + math.exp(-(edge - mean) / scale))

        x, half = 2 * level / (levels - 1) - 1, 1 / (levels - 1)
        upper = 1 if level == levels - 1 else below(x + half)
        total += share * (upper - (0 if level == 0 else below(x - half)))
    return math.log(total)


FORMULAS = {
    "categorical": (Categorical(4), 4, lambda p: p, lambda p, v: categorical(p, v)),
    "probabilities": (
        Categorical(4, probabilities=True),
        4,
        lambda p: p.exp(),  # which need not sum to one
        lambda p, v: math.log(p[v] / p.sum()),
    ),
    "bernoulli": (
        Bernoulli(),
        1,
        lambda p: p,
        lambda p, v: math.log(abs(1 - v - 1 / (1 + math.exp(-p)))),
    ),
    "probability": (
        Bernoulli(probabilities=True),
        1,
        lambda p: p.sigmoid(),
        lambda p, v: math.log(p if v else 1 - p),
    ),
    "custom weights": (
        Custom(4, lambda p, _: (p * 1000).long(), layout="n k c h w"),
        4,
        lambda p: p.exp(),
        lambda p, v: math.log(int(p[v] * 1000) / sum(int(q * 1000) for q in p)),
    ),
    "custom logits": (
        Custom(4, lambda p: 2 * p, probabilities=False),
        4,
        lambda p: p,
        lambda p, v: categorical(2 * p, v),
    ),
    "mixture of one colour": (
        LogisticMixture(2, 4, coupled=False),
        6,
        lambda p: p,
        lambda p, v: mixture(p, v, 4),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_log_prob_is_that_of_the_formula(name):
    head, count, transform, formula = FORMULAS[name]
    params = transform(torch.randn(2, count, 3, 2, 3, dtype=torch.float64))
    images = torch.randint(0, head.levels, (2, 3, 2, 3))
    want = torch.tensor(
        [
            sum(
                formula(params[n, :, c, y, x], int(images[n, c, y, x]))
                for c in range(3)
                for y in range(2)
                for x in range(3)
            )
            for n in range(2)
        ]
    )
    own = params if count > 1 else params[:, 0]
    torch.testing.assert_close(head.log_prob(own, images), want.double())
    picked = head.logits(own, images).log_softmax(1).gather(1, images.unsqueeze(1))
    torch.testing.assert_close(picked.flatten(1).sum(1), want.double())
    if not isinstance(head, Custom):
        last = own.movedim(1, -1) if count > 1 else own
        assert torch.equal(head.log_prob(last, images), head.log_prob(own, images))


def test_uncoupled_mixtures_of_one_colour_are_coupled_ones():
    params, images = torch.randn(2, 9, 5, 7), torch.randint(0, 8, (2, 1, 5, 7))
    one, other = LogisticMixture(3, 8), LogisticMixture(3, 8, coupled=False)
    torch.testing.assert_close(other.log_prob(params, images), one.log_prob(params, images))
    assert other.outputs(1) == one.outputs(1)
    flat = torch.randn(2, other.outputs(3), 5, 7)
    colours = torch.zeros(2, 3, 5, 7, dtype=torch.int64)
    colour_major = LogisticMixture(3, 8, coupled=False, layout="n (c k) h w")
    assert torch.equal(other.shape(flat, 3), colour_major.read(flat, colours))


def test_heads_print_what_was_given():
    assert repr(Categorical(4)) == "Categorical(levels=4)"
    assert repr(Bernoulli(probabilities=True)) == "Bernoulli(probabilities=True)"
    with pytest.raises(ValueError, match=r"\[Custom\] function must be a function, got 3"):
        Custom(4, 3)
    with pytest.raises(ValueError, match=r"levels must be at least 2, got 1"):
        Custom(1, torch.exp)


# --- compiled ---------------------------------------------------------------------------------------------


HEIGHT, WIDTH = 5, 3
MASK = (torch.arange(HEIGHT * WIDTH).view(1, 1, HEIGHT, WIDTH) > 0).float()


class Net(nn.Module):
    """Above and left of a pixel, then what `tail` makes of the outputs, float (N, outputs, H, W)."""

    def __init__(self, outputs: int, colours: int, tail):
        super().__init__()
        torch.manual_seed(0)
        self.above, self.left = nn.Conv2d(colours, 8, (2, 3)), nn.Conv2d(colours, 8, (1, 2))
        self.last, self.tail = nn.Conv2d(8, outputs, 1), tail

    def forward(self, x: Tensor):
        h = self.above(F.pad(x, (1, 1, 2, -1))) + self.left(F.pad(x, (2, -1, 0, 0)))
        return self.tail(4 * self.last(h.relu()))


def split(t: Tensor) -> Tensor:
    """Colour-major channels apart: (N, C, levels, H, W)."""
    return t.view(-1, 3, 4, HEIGHT, WIDTH)


def raised(t: Tensor, images: Tensor) -> Tensor:
    """Weights that grow with the levels of the colours before."""
    before = F.pad(images.float(), (0, 0, 0, 0, 1, -1))
    before = before + F.pad(before, (0, 0, 0, 0, 1, -1))
    return (split(t).transpose(1, 2).tanh() * (before * 0.3).unsqueeze(1)).exp()


@dataclass
class Result:
    loss: Tensor
    logits: Tensor


# What the outputs of the last layer mean, as logits (N, levels, C, H, W); and the number of colours and outputs.
MEANINGS = {
    "one colour": (lambda t, images: t.unsqueeze(2), 1, 4),
    "colours": (lambda t, images: split(t).transpose(1, 2), 3, 12),
    "levels": (lambda t, images: t.view(-1, 4, 3, HEIGHT, WIDTH), 3, 12),
    "binary": (lambda t, images: torch.stack([torch.zeros_like(t), t], 1), 1, 1),
    "three binary": (lambda t, images: torch.stack([torch.zeros_like(t), t], 1), 3, 3),
    "relu": (lambda t, images: t.relu().log().unsqueeze(2), 1, 4),
    "first even": (lambda t, images: torch.stack([torch.zeros_like(t), MASK * t], 1), 1, 1),
    "hard": (lambda t, images: torch.stack([0.5 - t / 4, t / 4 + 0.5], 1).clamp(0, 1).log(), 1, 1),
    "mixture": (lambda t, images: LogisticMixture(2, 8).logits(t, images), 3, 20),
    "mixtures": (
        lambda t, images: LogisticMixture(2, 8, coupled=False).logits(
            t.view(-1, 3, 6, HEIGHT, WIDTH).transpose(1, 2), images
        ),
        3,
        18,
    ),
    "custom": (lambda t, images: raised(t, images).log(), 3, 12),
    "integers": (lambda t, images: ((t.sigmoid() * 1000).long() + 1).float().log().unsqueeze(2), 1, 4),
    "twice": (lambda t, images: 2 * t.unsqueeze(2), 1, 4),
}


def mixed(layout: str | None = None) -> LogisticMixture:
    return LogisticMixture(2, 8, coupled=False, layout=layout)


COMPILED = {
    "n k c h w": (Categorical(4), "colours", lambda t: split(t).transpose(1, 2)),
    "n (c k) h w": (Categorical(4, layout="n (c k) h w"), "colours", lambda t: t),
    "n (k c) h w": (Categorical(4, layout="n (k c) h w"), "levels", lambda t: t),
    "n k h w": (Categorical(4), "one colour", lambda t: t),
    "n h w k": (Categorical(4), "one colour", lambda t: t.permute(0, 2, 3, 1)),
    "n h w c k": (Categorical(4), "colours", lambda t: split(t).permute(0, 3, 4, 1, 2)),
    "n h w (c k)": (Categorical(4, layout="n h w (c k)"), "colours", lambda t: t.permute(0, 2, 3, 1)),
    "softmax": (Categorical(4), "colours", lambda t: split(t).softmax(2)),
    "log_softmax": (Categorical(4), "colours", lambda t: split(t).permute(0, 3, 4, 1, 2).log_softmax(-1)),
    "log of softmax": (Categorical(4), "one colour", lambda t: F.softmax(t, 1).log().unsqueeze(2)),
    "by hand": (Categorical(4), "one colour", lambda t: (lambda e: e / e.sum(1, keepdim=True))(t.exp())),
    "weights": (Categorical(4, probabilities=True), "relu", lambda t: t.relu()),
    "exp": (Categorical(4, probabilities=True), "one colour", lambda t: t.log_softmax(1).exp()),
    "bernoulli": (Bernoulli(), "binary", lambda t: t),
    "n h w": (Bernoulli(), "binary", lambda t: t.squeeze(1)),
    "n h w 1": (Bernoulli(), "binary", lambda t: t.permute(0, 2, 3, 1)),
    "sigmoid": (Bernoulli(), "three binary", lambda t: t.permute(0, 2, 3, 1).sigmoid()),
    "clamped": (Bernoulli(), "binary", lambda t: t.sigmoid().squeeze(1).clamp(1e-6, 1 - 1e-6)),
    "masked": (Bernoulli(), "first even", lambda t: MASK * t.sigmoid() + 0.5 * (1 - MASK)),
    "hard": (Bernoulli(probabilities=True), "hard", lambda t: (t / 4 + 0.5).clamp(0, 1)),
    "mixture": (LogisticMixture(2, 8), "mixture", lambda t: t.permute(0, 2, 3, 1)),
    "mixtures": (mixed("n (c k) h w"), "mixtures", lambda t: t),
    "mixtures by level": (mixed(), "mixtures", lambda t: t.view(-1, 3, 6, HEIGHT, WIDTH).transpose(1, 2)),
    "custom": (Custom(4, raised), "custom", lambda t: t),
    "custom integers": (Custom(4, lambda t: (t.sigmoid() * 1000).long() + 1), "integers", lambda t: t),
    "custom logits": (Custom(4, lambda t: 2 * t, probabilities=False), "twice", lambda t: t),
    "distribution": (
        Categorical(4),
        "colours",
        lambda t: CategoricalOf(logits=split(t).permute(0, 1, 3, 4, 2)),
    ),
    "distribution of probabilities": (
        Categorical(4),
        "one colour",
        lambda t: CategoricalOf(probs=t.permute(0, 2, 3, 1).softmax(-1)),
    ),
    "binary distribution": (Bernoulli(), "binary", lambda t: BernoulliOf(logits=t)),
    "binary probabilities": (Bernoulli(), "binary", lambda t: Independent(BernoulliOf(probs=t.sigmoid()), 3)),
    "with a loss": (Categorical(4), "one colour", lambda t: (t, t.mean())),
    "a dictionary": (Categorical(4), "one colour", lambda t: {"out": [t], "step": 3}),
    "a dataclass": (Categorical(4), "one colour", lambda t: Result(t.mean(), t)),
    "n (h w) k": (Categorical(4), "one colour", lambda t: t.flatten(2).transpose(1, 2)),
    "n k (h w)": (Categorical(4), "one colour", lambda t: t.flatten(2)),
    "n (h w c) k": (
        Categorical(4, layout="n (h w c) k"),
        "colours",
        lambda t: split(t).permute(0, 3, 4, 1, 2).reshape(t.shape[0], -1, 4),
    ),
    "(n h w) k": (Categorical(4), "one colour", lambda t: t.permute(0, 2, 3, 1).reshape(-1, 4)),
    "n (h w)": (Bernoulli(), "binary", lambda t: t.flatten(1)),
    "softmax, n (h w) k": (Categorical(4), "one colour", lambda t: t.flatten(2).transpose(1, 2).softmax(-1)),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name):
    head, meaning, tail = COMPILED[name]
    logits, colours, outputs = MEANINGS[meaning]
    module = Net(outputs, colours, tail).eval()
    options = {
        "shape": (colours, HEIGHT, WIDTH),
        "head": head,
        "to_input": pf.inputs.scaled(-1, 1),
        "order": "raster",
    }
    sampler = pf.compile(module, **options)
    out = sampler.sample(3, seed=1)
    module.tail = lambda t: t
    images = out.images.long()
    with torch.no_grad():
        raw = module(images * (2 / (head.levels - 1)) - 1)
        want = logits(raw, images).log_softmax(1).gather(1, images.unsqueeze(1))
    torch.testing.assert_close(out.log_prob, want.flatten(1).sum(1), rtol=1e-5, atol=1e-4)
    assert sampler.verify() < 1e-4
    same = sampler.rescheduled(sampler.schedule, Target("reference")).sample(3, seed=1)
    assert torch.equal(out.images, same.images)
    assert torch.equal(out.log_prob, same.log_prob)


def read(tail, head=None, output=None, outputs: int = 4, colours: int = 1):
    """A captured net, and its settled head."""
    head = head or Categorical(4)
    net = Read(Net(outputs, colours, tail), head, output, "Net")
    module = pf.inputs.Fed(net.module, pf.inputs.floats(), 4)
    net.module = module
    captured = capture(net.eval(), shape=(colours, HEIGHT, WIDTH), levels=4, conditions={})
    return captured, settle(captured, head)


@pytest.mark.parametrize(
    ("head", "outputs", "colours", "tail", "count", "left"),
    [
        (Categorical(4), 4, 1, lambda t: t.log_softmax(1), 1, False),
        (Categorical(4), 4, 1, lambda t: t.log_softmax(1).softmax(1), 2, False),
        (Categorical(4), 4, 1, lambda t: t.softmax(1).clamp(1e-6), 0, True),
        (Categorical(4), 4, 1, lambda t: CategoricalOf(logits=t.movedim(1, -1)), 2, False),
        (Categorical(4), 4, 1, lambda t: t.log_softmax(3), 0, False),  # over positions
        (
            Categorical(4, layout="n (c k) h w"),
            12,
            3,
            lambda t: t.log_softmax(1),
            0,
            False,
        ),  # over colours too
        (Categorical(4), 4, 1, lambda t: (lambda p: p + p.relu())(t.log_softmax(1)), 0, False),
        (Bernoulli(), 1, 1, lambda t: t.sigmoid(), 1, False),
        (Bernoulli(), 1, 1, lambda t: t.sigmoid().clamp(0.1, 0.9), 0, True),
        (Bernoulli(), 1, 1, lambda t: 0.5 + (1 - MASK) * (t.sigmoid() - 0.5), 0, True),
        (Bernoulli(), 1, 1, lambda t: MASK * t.sigmoid() + 0.5 * (1 - MASK), 0, True),
        (Bernoulli(), 1, 1, lambda t: 8 * t.sigmoid() - 4, 0, False),  # logits, if bounded ones
        (Bernoulli(), 1, 1, lambda t: t * t.sigmoid(), 0, False),
        (Bernoulli(probabilities=False), 1, 1, lambda t: t.sigmoid(), 0, False),  # as it says
    ],
)
def test_normalisations_are_left_out(head, outputs, colours, tail, count, left):
    captured, head = read(tail, head, outputs=outputs, colours=colours)
    same, then = identities(captured, head)
    assert len(same) == count
    assert then.probabilities == left


@pytest.mark.parametrize(
    ("tail", "output", "scale"),
    [
        (lambda t: (t, 2 * t), 1, 2),
        (lambda t: (t, 2 * t), -1, 2),
        (lambda t: {"a": t, "b": 2 * t}, "b", 2),
        (lambda t: Result(3 * t, t), "loss", 3),
        (lambda t: [2 * t, t], lambda out: out[0] + out[1], 3),
        (lambda t: {"a": {"b": t}, "c": t}, "a", 1),
        (lambda t: (t, {"state": t[:, :2], "step": torch.zeros(())}), None, 1),
    ],
)
def test_one_of_several_outputs(tail, output, scale):
    captured, _ = read(tail, output=output)
    plain, _ = read(lambda t: t)
    images = torch.randint(0, 4, (2, 1, HEIGHT, WIDTH))
    torch.testing.assert_close(run(captured, images, {}), scale * run(plain, images, {}))


@pytest.mark.parametrize(
    ("tail", "output", "match"),
    [
        (
            lambda t: (t, 2 * t),
            None,
            r"\[compile\] Net.forward must return one tensor of parameters, got a tuple of 0 float32 \(2, 4, 5, 3\), "
            r"1 float32 .*; pass output=",
        ),
        (lambda t: {"loss": 3.0}, None, r"got a dict of no tensors"),
        (lambda t: {"a": t}, "b", r"\[compile\] Net.forward returned no 'b', got a dict of a float32"),
        (lambda t: (t,), 1, r"returned no 1, got a tuple"),
        (lambda t: Result(t, t), "out", r"returned no 'out', got a Result of loss float32 .*, logits"),
    ],
)
def test_outputs_that_are_not_clear_are_refused(tail, output, match):
    with pytest.raises(ValueError, match=match):
        read(tail, output=output)


def test_attributes_of_other_peoples_modules_mean_nothing():
    class Transformerlike(Net):
        channels, classes = 64, ["a", "b"]

        def __init__(self) -> None:
            super().__init__(4, 1, lambda t: t)
            self.head = nn.Conv2d(1, 1, 1)

    sampler = pf.compile(
        Transformerlike(), shape=(1, 3, 4), head=Categorical(4), to_input=pf.inputs.floats(), order="raster"
    )
    assert sampler.verify() < 1e-4
    with pytest.raises(ValueError, match="Transformerlike does not say how its output is read; pass head="):
        pf.compile(Transformerlike(), shape=(1, 3, 4))


def test_weights_below_zero_are_refused():
    with pytest.raises(
        ValueError, match=r"yields probabilities below 0 \(the least is .*pass probabilities=False"
    ):
        read(lambda t: t, Custom(4, lambda t: t))


@pytest.mark.parametrize("head", ["categorical", 256, nn.Linear(1, 1)])
def test_what_is_not_a_head_is_refused(head):
    with pytest.raises(ValueError, match=r"\[compile\] head must be one of pixelfast\.heads, got"):
        pf.compile(nn.Conv2d(1, 4, 1), shape=(1, 4, 4), head=head)
