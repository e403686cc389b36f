"""The pixel transformer: it is Image GPT, causal to the last bit, and drawn to the bit on every rung."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import ISAS, TOLERANCE, Case, assert_same_on

import pixelfast as pf
from pixelfast import models, numerics, plain
from pixelfast.models.pixel_transformer import PixelTransformer
from pixelfast.plan import AttendOp

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks import kv_loop

SMALL: dict[str, Any] = {
    "channels": 1,
    "levels": 4,
    "height": 3,
    "width": 4,
    "hidden": 6,
    "layers": 2,
    "heads": 2,
}


def random_model(shape: tuple[int, int, int] = (1, 3, 4), **options) -> PixelTransformer:
    """Return a small model whose weights are all alive."""
    torch.manual_seed(0)
    size = dict(zip(("channels", "height", "width"), shape, strict=True))
    model = PixelTransformer(**(SMALL | size | options))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model.eval()


@dataclass(frozen=True)
class Spec:
    """A model by the arguments that matter."""

    shape: tuple[int, int, int]
    levels: int
    head: str = "categorical"
    classes: int | None = None

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{size}-{self.head[:3]}{self.levels}" + ("-labels" if self.classes else "")


SPECS = [
    Spec((1, 5, 3), 4),
    Spec((3, 2, 3), 3),
    Spec((1, 1, 1), 300),
    Spec((1, 4, 1), 5, classes=3),
    Spec((3, 1, 1), 4, classes=2),
    Spec((3, 2, 3), 2, "bernoulli", classes=2),
]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


@functools.cache
def case_of(spec: Spec) -> Case:
    model = random_model(spec.shape, levels=spec.levels, head=spec.head, classes=spec.classes)
    return Case(model, spec.shape)


# --- the model --------------------------------------------------------------------------------------------


def published(model: Any, tokens: Tensor) -> Tensor:
    """The logits of Image GPT's public code (github.com/openai/image-gpt, src/model.py), equation by equation.

    tokens: int64 (N, L). Its variables are called there wte, wpe, wtet, sos, ln_1.g, attn.q_proj and so on.
    """

    def norm(x: Tensor, g: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * g

    heads, hidden = model.config["heads"], model.config["hidden"]
    n, length = tokens.shape
    embedded = model.tokens.weight[tokens]
    h = torch.cat([model.start.weight.expand(n, 1, hidden), embedded[:, :-1]], 1) + model.positions
    keep = torch.ones(length, length, dtype=h.dtype).tril()
    for layer in model.layers:
        x = norm(h, layer.before_attention.weight)
        q, k, v = (
            torch.einsum("bsf,hef->bhse", x, w.view(heads, -1, hidden)) for w in layer.project.weight.chunk(3)
        )
        w = torch.einsum("bhqe,bhke->bhqk", q, k) / math.sqrt(hidden / heads)
        w = torch.softmax(w * keep - 1e10 * (1 - keep), -1)
        a = torch.einsum("bhqk,bhke->bhqe", w, v)
        h = h + torch.einsum("bhse,fhe->bsf", a, layer.join.weight.view(hidden, heads, -1))
        x = norm(h, layer.before_wide.weight) @ layer.widen.weight.T
        h = h + (x * torch.sigmoid(1.702 * x)) @ layer.narrow.weight.T
    return norm(h, model.norm.weight) @ model.last.weight.T


def test_it_is_image_gpt():
    model = random_model(hidden=12, heads=3).double()
    images = torch.randint(0, 4, (2, 1, 3, 4))
    want = published(model, images.flatten(1)).view(2, 3, 4, 4).permute(0, 3, 1, 2)
    torch.testing.assert_close(model(images)[:, :, 0], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "hidden", "layers", "million", "count"),
    [
        ("igpt-s", 512, 24, 76, 76_571_648),
        ("igpt-m", 1024, 36, 455, 455_157_760),
        ("igpt-l", 1536, 48, 1362, 1_362_250_752),
    ],
)
def test_presets_have_the_parameters_of_image_gpt(name, hidden, layers, million, count):
    """Chen et al. 2020, section 3.3, says 76M, 455M and 1.4B. The exact counts are of the variables that the public
    code's `model` makes for the sizes in its README, without `wclf`, which is for fine-tuning."""
    with torch.device("meta"):
        model = PixelTransformer.preset(name)
    n_ctx, n_vocab = 32 * 32, 512
    block = 4 * hidden**2 + 2 * hidden * 4 * hidden + 2 * hidden  # q, k, v, c_proj; c_fc, c_proj; ln_1, ln_2
    ends = n_ctx * hidden + 2 * n_vocab * hidden + hidden + hidden  # wpe; wte, wtet; sos; ln_f
    assert sum(p.numel() for p in model.parameters()) == layers * block + ends == count
    assert count // 10**6 == million
    assert (model.channels, model.levels, model.size) == (1, 512, (32, 32))


def test_presets_may_be_changed():
    model = PixelTransformer.preset("igpt-s", layers=1, hidden=8, height=2, width=3, classes=5)
    assert model.config == {
        "channels": 1,
        "levels": 512,
        "height": 2,
        "width": 3,
        "hidden": 8,
        "layers": 1,
        "heads": 8,
        "classes": 5,
        "head": "categorical",
        "dropout": 0.0,
    }
    message = r"\[PixelTransformer\] preset must be one of igpt-s, igpt-m, igpt-l, got 'igpt-xl'"
    with pytest.raises(ValueError, match=message):
        PixelTransformer.preset("igpt-xl")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 1), (3, 5)])
def test_parameters_depend_on_all_that_was_drawn_before_and_on_nothing_else(channels, size):
    """To the bit: images one by one, since a batch of another size may be rounded otherwise."""
    model = random_model((channels, *size)).double()

    def by_token(image: Tensor) -> Tensor:
        with torch.no_grad():
            return model(image)[0].permute(2, 3, 1, 0).flatten(0, 2)  # (H * W * C, levels)

    tokens = torch.randint(0, 4, (*size, channels))
    before = by_token(tokens.permute(2, 0, 1)[None])
    for i in range(tokens.numel()):
        changed = tokens.clone()
        changed.view(-1)[i] = (tokens.view(-1)[i] + 1) % 4
        after = by_token(changed.permute(2, 0, 1)[None])
        assert torch.equal(after[: i + 1], before[: i + 1])
        assert (after[i + 1 :] != before[i + 1 :]).any(1).all()


@pytest.mark.parametrize(("head", "levels"), [("categorical", 3), ("bernoulli", 2)])
@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 1, 1), (1, 1, 3)])
def test_probabilities_of_all_images_sum_to_one(head, levels, shape):
    model = random_model(shape, levels=levels, head=head, classes=3).double()
    images = torch.tensor(list(itertools.product(range(levels), repeat=math.prod(shape)))).view(-1, *shape)
    total = model.log_prob(images, torch.full((len(images),), 2)).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_shapes_and_gradients(size, batch):
    model = PixelTransformer(
        channels=3, levels=5, height=size[0], width=size[1], hidden=6, heads=3, layers=2, classes=4
    )
    images = torch.randint(0, 5, (batch, 3, *size), dtype=torch.uint8)
    labels = torch.arange(batch)
    assert model(images, labels=labels).shape == (batch, 5, 3, *size)
    log_prob = model.log_prob(images, labels=labels)
    assert log_prob.shape == (batch,)
    log_prob.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(model(images.long(), labels), model(images, labels))


def test_labels_matter_from_the_first_pixel_on():
    model = random_model(classes=2)
    images = torch.zeros(2, 1, 3, 4, dtype=torch.uint8)
    first, second = model(images, torch.tensor([0, 1]))
    assert (first != second).any(0).all()


def test_dropout_is_only_in_training():
    model = random_model(dropout=0.5)
    images = torch.randint(0, 4, (2, 1, 3, 4))
    want = model(images)
    assert torch.equal(model(images), want)
    model.train()
    assert not torch.equal(model(images), model(images))
    for rate in (0.0, 0.5):  # of attention, on its own
        other: Any = random_model().train()
        other.layers[0].dropout.p = rate
        other.layers[0].dropout.eval()
        assert torch.equal(other(images), want) == (rate == 0)


def test_steps_of_training_lower_the_loss():
    torch.manual_seed(2)
    model = PixelTransformer(**SMALL | {"dropout": 0.1, "hidden": 16})
    images = torch.randint(1, 3, (16, 1, 3, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = -model.log_prob(images).mean() / 12
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(4), abs=0.1)  # of weights as they are drawn
    assert losses[-1] < 0.8 * losses[0]


def test_saved_and_loaded(tmp_path):
    model = random_model((3, 2, 3), classes=2, dropout=0.25)
    model.shape = (3, 2, 3)
    model.save(tmp_path)
    again = models.load(tmp_path)
    assert isinstance(again, PixelTransformer)
    assert not again.training
    assert (again.config, again.shape) == (model.config, model.shape)
    images, labels = torch.randint(0, 4, (2, 3, 2, 3)), torch.tensor([0, 1])
    assert torch.equal(again(images, labels), model(images, labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, r"\[PixelTransformer\] channels must be at least 1, got 0"),
        ({"height": 0}, r"\[PixelTransformer\] height must be at least 1, got 0"),
        ({"width": 0}, r"\[PixelTransformer\] width must be at least 1, got 0"),
        ({"layers": 0}, r"\[PixelTransformer\] layers must be at least 1, got 0"),
        ({"heads": 0}, r"\[PixelTransformer\] heads must be at least 1, got 0"),
        ({"heads": 4}, r"\[PixelTransformer\] hidden must be divisible by heads \(=4\), got 6"),
        ({"classes": 0}, r"\[PixelTransformer\] classes must be at least 1, got 0"),
        ({"dropout": 1.0}, r"\[PixelTransformer\] dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"\[PixelTransformer\] dropout must be in \[0, 1\), got -0.1"),
        ({"levels": 1}, "levels must be at least 2, got 1"),
        ({"head": "mixture"}, 'head must be "categorical" or "bernoulli", got \'mixture\''),
        ({"head": "bernoulli"}, "levels must be 2, got 4"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        PixelTransformer(**SMALL | options)


def test_numbers_are_integers():
    with pytest.raises(TypeError, match=r"\[PixelTransformer\] hidden must be an integer, got 6.0"):
        PixelTransformer(**SMALL | {"hidden": 6.0})


@pytest.mark.parametrize("size", [(4, 3), (3, 5), (12, 1)])
def test_images_of_another_size(size):
    model, images = random_model(), torch.zeros(2, 1, *size, dtype=torch.uint8)
    message = rf"\] the model has positions for images of 3x4, got {size[0]}x{size[1]}"
    with pytest.raises(ValueError, match=r"\[PixelTransformer" + message):
        model(images)
    with pytest.raises(ValueError, match=r"\[log_prob" + message):
        model.log_prob(images)
    with pytest.raises(ValueError, match=message):
        pf.compile(model, shape=(1, *size))


def test_bad_images_are_refused_as_by_every_model():
    model = random_model(classes=2)
    images, labels = torch.zeros(2, 1, 3, 4, dtype=torch.uint8), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"images must be uint8 or int64, got torch\.float32"):
        model(images.float(), labels)
    with pytest.raises(ValueError, match="the model has 2 classes, so labels are needed"):
        model(images)
    with pytest.raises(ValueError, match=r"\[log_prob\] images must be in \[0, 4\), got values from 4 to 4"):
        model.log_prob(images + 4, labels)


# --- the sampler ------------------------------------------------------------------------------------------


@every_spec
def test_the_engine_agrees_with_the_model(spec):
    case = case_of(spec)
    sampler = case.sampler("raster", "reference")
    assert sampler.verify() < 1e-5
    out = sampler.sample(3, seed=7, **case.labels(3))
    exact = case.exact_log_prob(out.images)
    torch.testing.assert_close(out.log_prob.double(), exact, **TOLERANCE["reference", "float32"])


@every_spec
@pytest.mark.parametrize("isa", ISAS)
def test_every_rung_draws_the_same_images(spec, isa):
    case = case_of(spec)
    assert_same_on(case.sampler("raster", "reference"), isa, seed=6, **case.labels(3))


def test_the_order_is_raster():
    """All earlier pixels are attended to, so none can be drawn together."""
    sampler = pf.compile(case_of(SPECS[1]).module, shape=(3, 2, 3))
    assert sampler.order == "raster"
    assert sampler.steps == 18
    assert sum(isinstance(op, AttendOp) for op in sampler.schedule.plan.ops) == 2


def drawn_plainly(case: Case, n: int, seed: int, patch: pytest.MonkeyPatch) -> Tensor:
    """By the plain loop, from the engine's random bits."""
    steps = itertools.count()

    def multinomial(weights: Tensor, _: int) -> Tensor:
        step = next(steps)
        tables = [numerics.frequencies(row) for row in weights.log().numpy()]
        levels = [numerics.draw(f, numerics.uniform(seed, i, step)) for i, f in enumerate(tables)]
        return torch.tensor(levels)[:, None]

    patch.setattr(torch, "multinomial", multinomial)
    images = torch.zeros(n, *case.shape, dtype=torch.int64)
    for _ in plain.draw(case.module, images, **case.labels(n)):
        pass
    return images


@every_spec
def test_the_plain_loop_draws_the_same_images(spec, monkeypatch):
    case = case_of(spec)
    got = case.sampler().sample(4, seed=8, **case.labels(4)).images
    assert torch.equal(drawn_plainly(case, 4, 8, monkeypatch), got.long())


# --- the loop with caches ---------------------------------------------------------------------------------


@every_spec
def test_the_cached_loop_computes_what_the_model_does(spec):
    case = case_of(spec)
    images = torch.randint(0, spec.levels, (3, *spec.shape), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        want = case.module.network(images, **{"labels": None} | case.labels(3))
    torch.testing.assert_close(
        kv_loop.outputs(case.module, images, **case.labels(3)), want, rtol=1e-5, atol=1e-5
    )
    double = copy.deepcopy(case.module).double()
    with torch.inference_mode():
        want = double.network(images, **{"labels": None} | case.labels(3))
    got = kv_loop.outputs(double, images.to(torch.int64), **case.labels(3))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("head", "levels"), [("categorical", 3), ("bernoulli", 2)])
def test_the_cached_loop_draws_from_the_model(head, levels):
    model = random_model((2, 1, 2), levels=levels, head=head, classes=2)
    n = 20_000
    images = kv_loop.sample(
        model, n, labels=torch.ones(n, dtype=torch.int64), generator=torch.Generator().manual_seed(0)
    )
    assert images.shape == (n, 2, 1, 2)
    assert images.dtype == torch.int64
    every = torch.tensor(list(itertools.product(range(levels), repeat=4)))
    with torch.no_grad():
        p = model.log_prob(every.view(-1, 2, 1, 2), torch.ones(len(every), dtype=torch.int64)).exp()
    powers = levels ** torch.arange(3, -1, -1)
    counts = torch.bincount((images.flatten(1) * powers).sum(1), minlength=len(every))
    assert ((counts - n * p).abs() < 5 * (n * p * (1 - p)).sqrt() + 1).all()


def test_the_cached_loop_is_repeatable_and_can_be_timed_in_part():
    model = random_model((3, 2, 3))
    first, second = (kv_loop.sample(model, 2, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    tokens = torch.full((2, 18), -1)
    tokens[:, 8] = 0
    kv_loop.draw(kv_loop.Cached(model, 2), tokens, range(9, 12))
    assert ((tokens >= 0).sum(0) == torch.tensor([0] * 8 + [2] * 4 + [0] * 6)).all()


def test_the_cached_loop_knows_its_models():
    other = models.PixelCNN(levels=2, hidden=2, layers=1)
    assert kv_loop.knows(random_model())
    assert not kv_loop.knows(other)
    with pytest.raises(ValueError, match=r"\[Cached\] model must be a PixelTransformer, got PixelCNN"):
        kv_loop.Cached(other, 1)
