"""PixelSNAIL: attention between gated layers, causal to the last bit, from the published sizes to sampling."""

from __future__ import annotations

import functools
import itertools
import math
import re

import pytest
import torch
from torch import Tensor
from zoo import ISAS, TOLERANCE, Case, assert_same_on, labels_of, recompile

import pixelfast as pf
from pixelfast.causality import find_skew
from pixelfast.models.pixelsnail import PixelSNAIL, _attend, _background, _pool, _seen

SMALL = {"hidden": 6, "blocks": 1, "layers": 1, "key": 3, "value": 5, "mixtures": 2}
SIZES = [(1, 1), (1, 5), (5, 1), (4, 5)]


def random_model(**options) -> PixelSNAIL:
    """A small model in float64 whose weights are all alive."""
    torch.manual_seed(0)
    model = PixelSNAIL(**({"levels": 4} | SMALL | options)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


# --- what depends on what -------------------------------------------------------------------------------------


def dependence(model: PixelSNAIL, height: int, width: int) -> Tensor:
    """bool (H * W, H * W): whether the parameters of pixel i depend on pixel j, for some of a few images."""
    found = torch.zeros(height * width, height * width, dtype=torch.bool)
    for _ in range(1 if model.stride == 1 else 4):  # a maximum depends on the largest alone
        x = torch.randn(1, model.channels, height, width, dtype=torch.double, requires_grad=True)
        outputs = model.network(x, None)
        outputs = (outputs[0] * torch.randn(len(outputs[0]), 1, 1, dtype=torch.double)).sum(0).flatten()
        rows = [torch.autograd.grad(o, x, retain_graph=True)[0] for o in outputs]
        found |= torch.stack([(row != 0).any(1).flatten() for row in rows])
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_every_earlier_pixel_is_seen_and_no_other(channels, size):
    found = dependence(random_model(channels=channels), *size)
    assert torch.equal(found, torch.ones_like(found).tril(-1))


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_strided_attention_is_causal(stride, size):
    assert not dependence(random_model(channels=3, stride=stride), *size).triu().any()


def test_strided_attention_has_a_blind_spot():
    found = dependence(random_model(channels=1, stride=2, layers=2), 4, 5)
    assert not found[1 * 5 + 0, 0 * 5 + 3]  # of a window that ends in the row of the query, and later
    assert found[2 * 5 + 0, : 2 * 5].all()


def test_labels_matter():
    model = random_model(channels=1, classes=2)
    images = torch.randint(0, 4, (1, 1, 4, 4))
    assert model.log_prob(images, torch.tensor([0])) != model.log_prob(images, torch.tensor([1]))


@pytest.mark.parametrize(
    ("head", "levels", "shape", "stride"),
    [
        ("logistic_mixture", 3, (1, 2, 2), 1),
        ("logistic_mixture", 2, (3, 1, 2), 1),
        ("categorical", 3, (1, 1, 4), 2),
        ("bernoulli", 2, (1, 3, 2), 2),
    ],
)
def test_probabilities_of_all_images_sum_to_one(head, levels, shape, stride):
    model = random_model(channels=shape[0], levels=levels, head=head, stride=stride, classes=3)
    images = torch.tensor(list(itertools.product(range(levels), repeat=math.prod(shape)))).view(-1, *shape)
    total = model.log_prob(images, torch.full((len(images),), 2)).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-12)


# --- attention ------------------------------------------------------------------------------------------------


def attended(query: Tensor, key: Tensor, value: Tensor, stride: int) -> Tensor:
    """What `causal_attention` of the authors' nn.py says, one query and one window after another."""
    height, width = query.shape[2:]
    rows, columns = (
        [[i + j for j in range(stride) if 0 <= i + j < n] for i in range(-(-n % stride // 2), n, stride)]
        for n in (height, width)  # windows as TensorFlow's "SAME" puts them
    )
    windows = [list(itertools.product(*sides)) for sides in itertools.product(rows, columns)]
    out = torch.zeros(len(query), value.shape[1], height, width, dtype=query.dtype)
    for at in itertools.product(range(height), range(width)):
        earlier = [pixels for pixels in windows if max(pixels) < at]
        if earlier:
            k, v = (
                torch.stack([torch.stack([t[:, :, y, x] for y, x in pixels]).amax(0) for pixels in earlier])
                for t in (key, value)
            )
            scores = (query[:, :, *at] * k).sum(2) / math.sqrt(key.shape[1])
            out[:, :, *at] = (scores.softmax(0)[:, :, None] * v).sum(0)
    return out


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [*SIZES, (4, 4), (3, 6)])
def test_attention_is_that_of_the_authors(size, stride):
    torch.manual_seed(stride)
    query, key, value = (torch.randn(2, c, *size, dtype=torch.double) for c in (3, 3, 5))
    got = _attend(query, _pool(key, stride), _pool(value, stride), _seen(*size, stride, query.device))
    torch.testing.assert_close(got, attended(query, key, value, stride))


def test_the_background_says_where_a_position_is():
    places = _background(torch.randn(2, 3, 4, 5, dtype=torch.double))
    assert places.shape == (2, 2 * 3, 4, 5)
    for n, c, y, x in itertools.product(range(2), range(3), range(4), range(5)):
        assert places[n, c, y, x] == (y - 2) / 4
        assert places[n, 3 + c, y, x] == (x - 2.5) / 5


# --- the published models -------------------------------------------------------------------------------------


def published(mixtures: int, times: int, hidden: int = 256, blocks: int = 12, layers: int = 4) -> int:
    """Count the variables of `h12_noup_smallkey_spec` as called by `train.py`, whose nonlinearity is "elu" by default.

    times: by how much the nonlinearity widens: 2 for "concat_elu".

    https://github.com/neocxi/pixelsnail-public, commit db1f4ec: model.py, `_base_noup_smallkey_spec`, for the layers;
    nn.py for their variables: V, and g and b of its outputs. Its background is broadcast to the shape of x, so it has
    two channels for each colour. The paper states no count.
    """

    def conv(taps: int, inputs: int, outputs: int) -> int:
        return taps * inputs * outputs + 2 * outputs

    def gated(taps: int, width: int) -> int:
        return conv(taps, times * width, width) + conv(taps, times * width, 2 * width)

    image, key, value = 3, 16, hidden // 2
    asking = hidden + 2 * image
    asked = image + asking
    attention = gated(1, asked) + conv(1, asked, key + value) + gated(1, asking) + conv(1, asking, key)
    mix = gated(1, hidden) + conv(1, times * value, hidden)
    first = conv(1 * 3, image + 1, hidden) + conv(2 * 1, image + 1, hidden)
    last = conv(1, hidden, 10 * mixtures)
    return first + blocks * (layers * gated(2 * 2, hidden) + attention + mix) + last


@pytest.mark.parametrize(
    ("preset", "mixtures", "activation", "count"),
    [
        ("cifar10", 10, "elu", 46_180_788),
        ("cifar10", 10, "concat_elu", 91_681_320),
        ("imagenet32", 32, "elu", 46_237_548),
        ("imagenet32", 32, "concat_elu", 91_738_080),
    ],
)
def test_the_published_models_have_their_parameters(preset, mixtures, activation, count):
    with torch.device("meta"):
        model = PixelSNAIL.preset(preset, activation=activation)
    times = 2 if activation == "concat_elu" else 1
    assert sum(p.numel() for p in model.parameters()) == count == published(mixtures, times)


def test_presets_can_be_changed():
    with torch.device("meta"):
        assert PixelSNAIL.preset("cifar10", blocks=1, stride=2).config["stride"] == 2
    with pytest.raises(ValueError, match=r"preset must be one of cifar10, imagenet32, got 'mnist'"):
        PixelSNAIL.preset("mnist")


# --- training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [0, 3])
def test_shapes_and_gradients(size, batch):
    model = PixelSNAIL(**SMALL, channels=1, levels=5, head="categorical", classes=4, stride=2)
    images = torch.randint(0, 5, (batch, 1, *size), dtype=torch.uint8)
    labels = torch.arange(batch)
    assert model.eval()(images, labels).shape == (batch, 5, 1, *size)
    assert torch.equal(model(images.long(), labels), model(images, labels))
    model.train().log_prob(images, labels).sum().backward()
    gradients = [p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters()]
    assert all(gradients) or size == (1, 1)  # a single pixel attends to nothing


def test_initialisation_normalises_every_layer():
    torch.manual_seed(1)
    model = PixelSNAIL(**(SMALL | {"blocks": 2}), channels=1, levels=8)
    images = torch.randint(0, 8, (64, 1, 8, 8))
    model.initialise(images)
    assert model.training
    outputs = {}
    layers = {"query": model.blocks[1].query, "outer": model.blocks[1].mix.outer, "last": model.last}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out}))
    model.eval()(images)
    for name, out in outputs.items():
        std = torch.full_like(out[0, :, 0, 0], 0.1 if name == "outer" else 1)
        torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros_like(std), atol=1e-4, rtol=0)
        torch.testing.assert_close(out.std((0, 2, 3)), std, atol=1e-3, rtol=0)


@pytest.mark.parametrize("activation", ["elu", "concat_elu"])
def test_a_few_steps_of_training_lower_the_loss(activation):
    torch.manual_seed(2)
    model = PixelSNAIL(**SMALL, levels=16, dropout=0.0, activation=activation)
    images = torch.randint(6, 10, (16, 3, 5, 5))
    model.initialise(images)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = -model.log_prob(images).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


# --- sampling -------------------------------------------------------------------------------------------------


@functools.cache
def compiled(shape: tuple[int, int, int], **options) -> tuple[Case, pf.Sampler]:
    torch.manual_seed(0)
    model = PixelSNAIL(**({"channels": shape[0], "levels": 16} | SMALL | options))
    images = torch.randint(0, model.levels, (32, shape[0], 7, 6))
    model.initialise(images, **labels_of(model, 32))
    return Case(model.eval(), shape), pf.compile(model, shape=shape)


MIXTURE = functools.partial(compiled, (3, 2, 3), blocks=2)
STRIDED = functools.partial(compiled, (1, 3, 5), stride=2, activation="concat_elu")
CODES = functools.partial(compiled, (1, 1, 5), levels=7, head="categorical", classes=3)
BINARY = functools.partial(compiled, (1, 5, 2), levels=2, head="bernoulli", stride=2, classes=2)
PIXEL = functools.partial(compiled, (1, 1, 1), levels=2, head="bernoulli")
CASES = [
    pytest.param(MIXTURE, id="mixture"),
    pytest.param(STRIDED, id="strided"),
    pytest.param(CODES, id="codes"),
    pytest.param(BINARY, id="binary"),
    pytest.param(PIXEL, id="pixel"),
]


@pytest.mark.parametrize("make", CASES)
def test_the_truth_ladder(make):
    case, sampler = make()
    labels = case.labels(2)
    want = recompile(sampler, sampler.schedule, backend="reference").sample(2, seed=3, **labels)
    torch.testing.assert_close(
        want.log_prob.double(), case.exact_log_prob(want.images), **TOLERANCE["reference", "float32"]
    )
    sampler.verify()
    sampler.sample(2, **labels)
    assert sampler._runtime.last_multiply_adds == 2 * sampler.multiply_adds


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("make", CASES)
def test_every_rung(make, isa):
    case, sampler = make()
    reference = recompile(sampler, sampler.schedule, backend="reference")
    assert_same_on(reference, isa, seed=6, **case.labels(3))


@pytest.mark.parametrize("make", CASES)
def test_the_likeliest_image_is_that_of_the_plain_loop(make):
    case, sampler = make()
    labels = case.labels(2)
    images = torch.zeros(2, *case.shape, dtype=torch.int64)
    channels, height, width = case.shape
    with torch.no_grad():
        for y, x, c in itertools.product(range(height), range(width), range(channels)):
            logits = case.module.head.logits(case.module(images, **labels), images)
            images[:, c, y, x] = logits[:, :, c, y, x].argmax(1)
    assert torch.equal(sampler.sample(2, seed=0, top_k=1, **labels).images.long(), images)


@pytest.mark.parametrize(
    ("make", "windows"),
    [(MIXTURE, 5 + 4 + 3 + 2 + 1), (STRIDED, 8 + 6 + 5 + 3 + 1)],
    ids=["mixture", "strided"],
)
def test_every_query_attends_once_and_so_the_order_is_raster(make, windows):
    case, sampler = make()
    explanation = sampler.explain()
    assert explanation.order == "raster"
    assert explanation.steps == math.prod(case.shape)
    assert find_skew(sampler._plan) == case.shape[2]  # no wavefront is faster
    attentions = [row.multiply_adds for row in explanation.rows if row.kind == "attend"]
    assert attentions == [windows * (SMALL["key"] + SMALL["value"])] * len(case.module.blocks)


# --- files and arguments --------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path):
    model = PixelSNAIL(
        **SMALL, channels=1, levels=9, head="categorical", classes=3, stride=2, dropout=0.25, activation="concat_elu"
    )  # fmt: skip
    model.save(tmp_path)
    again = pf.load(tmp_path)
    assert type(again) is PixelSNAIL
    assert again.config == model.config
    images, labels = torch.randint(0, 9, (2, 1, 5, 4)), torch.tensor([0, 2])
    assert torch.equal(again.log_prob(images, labels), model.eval().log_prob(images, labels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 2}, "[PixelSNAIL] channels must be 1 or 3, got 2"),
        ({"dropout": 1.0}, "[PixelSNAIL] dropout must be in [0, 1), got 1.0"),
        ({"activation": "relu"}, """[PixelSNAIL] activation must be "elu" or "concat_elu", got 'relu'"""),
        (
            {"head": "categorical"},
            """[PixelSNAIL] head must be "logistic_mixture" for channels=3, got 'categorical'""",
        ),
        (
            {"head": "mixture", "channels": 1},
            """head must be "logistic_mixture" or "categorical" or "bernoulli" for channels=1, got 'mixture'""",
        ),
        ({"head": "bernoulli", "channels": 1}, "[Bernoulli] levels must be 2, got 256"),
        ({"levels": 1}, "mixtures must be at least 1 and levels at least 2, got 10 and 1"),
        ({"stride": 0}, "[PixelSNAIL] stride must be at least 1, got 0"),
        ({"layers": 0}, "[PixelSNAIL] layers must be at least 1, got 0"),
        ({"key": 0}, "[PixelSNAIL] key must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PixelSNAIL(**arguments)


def test_widths_are_integers():
    with pytest.raises(TypeError, match=re.escape("[PixelSNAIL] hidden must be an integer, got 'many'")):
        PixelSNAIL(hidden="many")
