"""The models: causal to the last bit, normalised, and saved so that what is loaded is what was saved."""

from __future__ import annotations

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pixelfast import heads, models
from pixelfast.models import (
    AutoregressiveModel,
    DiagonalBiLSTM,
    GatedPixelCNN,
    LSTM2d,
    PixelCNN,
    RowLSTM,
)

MODELS = [PixelCNN, GatedPixelCNN, RowLSTM, DiagonalBiLSTM, LSTM2d]
SMALL = {"levels": 4, "hidden": 24, "layers": 6, "kernel": 5}
SIZES = [(1, 1), (1, 5), (5, 1), (5, 7)]


def random_model(kind: type[AutoregressiveModel], **options) -> AutoregressiveModel:
    """Return a small model in float64 whose weights are all alive."""
    torch.manual_seed(0)
    small = {"levels": 4, "hidden": 24, "layers": 3} if kind is LSTM2d else SMALL
    model = kind(**(small | options)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def dependence(model: AutoregressiveModel, height: int, width: int) -> torch.Tensor:
    """Return bool (D, D): whether the parameters of sub-pixel i depend on sub-pixel j, in drawing order."""
    x = torch.randn(1, model.channels, height, width, dtype=torch.double, requires_grad=True)
    params = model.head.logits(model.head.shape(model.network(x, None), model.channels))
    weights = torch.randn(model.levels, dtype=torch.double)[:, None, None, None]
    outputs = (params[0] * weights).sum(0).permute(1, 2, 0).flatten()
    rows = [torch.autograd.grad(o, x, retain_graph=True, allow_unused=True)[0] for o in outputs]
    zero = torch.zeros_like(x)
    return torch.stack([(zero if g is None else g)[0].permute(1, 2, 0).flatten() != 0 for g in rows])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_parameters_depend_only_on_what_was_drawn_before(kind, channels, size):
    found = dependence(random_model(kind, channels=channels), *size)
    assert not found.triu().any()
    if channels == 3:  # and do depend on the colours before
        assert found[1, 0]
        assert found[2, :2].all()


@pytest.mark.parametrize("kind", MODELS)
def test_bernoulli_is_causal(kind):
    found = dependence(random_model(kind, channels=3, levels=2, head="bernoulli"), 3, 4)
    assert not found.triu().any()


@pytest.mark.parametrize("channels", [1, 3])
def test_gated_pixelcnn_has_no_blind_spot(channels):
    found = dependence(random_model(GatedPixelCNN, channels=channels), 5, 7)
    assert torch.equal(found, torch.ones_like(found).tril(-1))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_blind_spot_of_the_diagonal_bilstm(channels):
    """The last colour of the row above, for pixels that the first kernel does not show it to."""
    height, width, half = 5, 7, 2
    found = dependence(random_model(DiagonalBiLSTM, channels=channels), height, width)
    missing = (torch.ones_like(found).tril(-1) & ~found).view(
        height, width, channels, height, width, channels
    )
    want = torch.zeros_like(missing)
    for y in range(1, height):
        want[y, : width - 1 - half, :, y - 1, width - 1, channels - 1] = True
    assert torch.equal(missing, want)


@pytest.mark.parametrize("kind", [PixelCNN, RowLSTM, LSTM2d])
def test_a_blind_spot(kind):
    found = dependence(random_model(kind), 5, 7)
    below, upper_right = 1 * 7 + 0, 0 * 7 + 6
    assert not found[below, upper_right]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("head", "levels"), [("categorical", 2), ("categorical", 3), ("bernoulli", 2)])
@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 1, 1), (1, 1, 3)])
def test_probabilities_of_all_images_sum_to_one(kind, head, levels, shape):
    model = random_model(kind, channels=shape[0], levels=levels, head=head, classes=3, layers=2)
    images = torch.tensor(list(itertools.product(range(levels), repeat=math.prod(shape)))).view(-1, *shape)
    labels = torch.full((len(images),), 2)
    total = model.log_prob(images, labels).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_shapes_and_gradients(kind, size, batch):
    model = kind(channels=3, levels=5, hidden=6, layers=2, classes=4)
    images = torch.randint(0, 5, (batch, 3, *size), dtype=torch.uint8)
    labels = torch.arange(batch)
    assert model(images, labels=labels).shape == (batch, 5, 3, *size)
    log_prob = model.log_prob(images, labels=labels)
    assert log_prob.shape == (batch,)
    log_prob.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(model(images.long(), labels), model(images, labels))


@pytest.mark.parametrize("kind", MODELS)
def test_labels_matter(kind):
    model = random_model(kind, classes=2)
    images = torch.randint(0, 4, (1, 1, 4, 4))
    assert model.log_prob(images, torch.tensor([0])) != model.log_prob(images, torch.tensor([1]))


@pytest.mark.parametrize("kind", MODELS)
def test_more_than_256_levels(kind):
    model = kind(levels=300, hidden=4, layers=1)
    images = torch.tensor([[[[299, 0]]]])
    assert model.log_prob(images).shape == (1,)
    with pytest.raises(ValueError, match=re.escape("images must be in [0, 300), got values from 0 to 300")):
        model.log_prob(torch.tensor([[[[300, 0]]]]))


def test_fresh_gates_neither_saturate_nor_vanish():
    torch.manual_seed(0)
    model = GatedPixelCNN(hidden=32, layers=12, classes=10)
    spreads = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, inputs, outputs: spreads.append(outputs[0].std().item()))
    model(torch.randint(0, 256, (4, 1, 16, 16)), torch.arange(4))
    assert len(spreads) == 12
    assert all(0.3 < spread < 2 for spread in spreads)


def test_no_dead_taps_and_no_masks_of_ones():
    model = GatedPixelCNN(channels=1, kernel=7, hidden=8, layers=2)
    assert not list(model.buffers())
    assert model.layers[0].vertical.weight.shape == (16, 1, 3, 7)
    assert model.layers[0].horizontal.weight.shape == (16, 1, 1, 3)
    assert PixelCNN(kernel=7, hidden=8, layers=1).first.weight.shape == (8, 1, 4, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", [heads.Categorical(2), heads.Bernoulli()])
def test_heads_agree_with_their_logits(head, dtype):
    torch.manual_seed(0)
    images = torch.randint(0, 2, (3, 2, 4, 5))
    params = torch.randn(head.shape(torch.zeros(3, head.outputs(2), 4, 5), 2).shape).to(dtype)
    want = head.logits(params).double().log_softmax(1).gather(1, images[:, None]).flatten(1).sum(1)
    got = head.log_prob(params, images)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    assert heads.make_head(head.name, 2) == head


def test_bits_per_dim():
    nats = torch.tensor([-math.log(2) * 12])
    assert heads.bits_per_dim(nats, 12).item() == pytest.approx(1)
    assert heads.bits_per_dim(nats, (3, 2, 2)).item() == pytest.approx(1)
    with pytest.raises(ValueError, match=re.escape("[bits_per_dim] dims must be positive, got 0")):
        heads.bits_per_dim(nats, 0)


@pytest.mark.parametrize("kind", MODELS)
def test_save_and_load(kind, tmp_path):
    model = kind(channels=3, levels=7, hidden=6, layers=2, classes=2)
    model.shape, model.class_names = (3, 4, 5), ("a", "b")
    model.save(tmp_path / "run")
    state = torch.get_rng_state()
    loaded = models.load(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)
    assert type(loaded) is kind
    assert not loaded.training
    assert loaded.config == model.config
    assert (loaded.shape, loaded.class_names) == (model.shape, model.class_names)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors"]
    images, labels = torch.randint(0, 7, (2, 3, 4, 5)), torch.tensor([0, 1])
    assert torch.equal(loaded(images, labels), model(images, labels))


@pytest.fixture
def saved(tmp_path):
    GatedPixelCNN(levels=2, hidden=2, layers=1).save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_load_missing_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=rf"\[load\] .* holds no {name}"):
        models.load(saved)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_load_truncated_weights(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is truncated or no safetensors file"):
        models.load(saved)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not a model's config"),
        ("[]", "is not a model's config"),
        ('{"model": "PixelCNN"}', "is not a model's config"),
        ('{"model": "PixelRNN", "config": {}}', "unknown model 'PixelRNN'; known are .*PixelCNN"),
        ('{"model": "PixelCNN", "config": {"depth": 3}}', "unexpected keyword argument 'depth'"),
        ('{"model": "PixelCNN", "config": {"hidden": "many"}}', "config.json: "),
        ('{"model": "PixelCNN", "config": {}, "shape": 3}', "shape must be 3 numbers, got 3"),
    ],
)
def test_load_bad_config(saved, config, message):
    (saved / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        models.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("last.bias"), r"lacks last\.bias: it is not of this model"),
        (lambda w: w.update(extra=torch.zeros(1)), "has unexpected extra: it is not of this model"),
        (lambda w: w.update({"last.bias": torch.zeros(3)}), r"last\.bias must have shape \(2,\), got \(3,\)"),
        (lambda w: w["last.bias"].fill_(math.nan), r"last\.bias has NaN or infinite values"),
        (lambda w: w["last.bias"].fill_(math.inf), r"last\.bias has NaN or infinite values"),
    ],
)
def test_load_foreign_weights(saved, change, message):
    weights = load_file(saved / "model.safetensors")
    change(weights)
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        models.load(saved)


def test_config_is_plain_json(saved):
    content = json.loads((saved / "config.json").read_text())
    assert content["model"] == "GatedPixelCNN"
    assert content["config"]["levels"] == 2


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"classes": 0}, "classes must be at least 1, got 0"),
        ({"levels": 1}, "levels must be at least 2, got 1"),
        ({"kernel": 4}, "kernel must be odd and at least 3, got 4"),
        ({"kernel": 1}, "kernel must be odd and at least 3, got 1"),
        ({"channels": 3, "hidden": 2}, r"hidden must be at least channels \(=3\), got 2"),
        ({"head": "mixture"}, 'head must be "categorical" or "bernoulli", got \'mixture\''),
        ({"head": "bernoulli"}, "levels must be 2, got 256"),
    ],
)
def test_bad_options(kind, options, message):
    if kind is LSTM2d and "kernel" in options:
        pytest.skip("it has no kernel")
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_what_is_no_integer():
    for value in (2.0, True, "2"):
        with pytest.raises(TypeError, match=rf"\[PixelCNN\] hidden must be an integer, got {value!r}"):
            PixelCNN(hidden=value)
    assert type(PixelCNN(levels=2, hidden=np.int64(2), layers=1).config["hidden"]) is int


IMAGES = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.float(), LABELS, "images must be uint8 or int64, got torch.float32"),
        (IMAGES[0], LABELS, r"images must have shape \(N, 1, H, W\), got \(1, 3, 3\)"),
        (IMAGES.expand(2, 3, 3, 3), LABELS, r"images must have shape \(N, 1, H, W\), got \(2, 3, 3, 3\)"),
        (IMAGES[:, :, :0], LABELS, r"images must have at least one pixel, got \(2, 1, 0, 3\)"),
        (IMAGES, None, "the model has 2 classes, so labels are needed"),
        (IMAGES, LABELS.int(), "labels must be int64, got torch.int32"),
        (IMAGES, LABELS[:1], r"labels must have shape \(2,\), got \(1,\)"),
    ],
)
@pytest.mark.parametrize("method", ["forward", "log_prob"])
def test_bad_inputs(images, labels, message, method):
    model = GatedPixelCNN(levels=4, hidden=2, layers=1, classes=2)
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(images, labels)


def test_values_out_of_range():
    model = GatedPixelCNN(levels=4, hidden=2, layers=1, classes=2)
    with pytest.raises(ValueError, match=r"\[log_prob\] images must be in \[0, 4\), got values from 4 to 4"):
        model.log_prob(IMAGES + 4, LABELS)
    with pytest.raises(ValueError, match=r"\[log_prob\] labels must be in \[0, 2\), got values from 1 to 2"):
        model.log_prob(IMAGES, LABELS + 1)


def test_unwanted_labels():
    with pytest.raises(ValueError, match="the model has no classes, so it takes no labels"):
        PixelCNN(levels=4, hidden=2, layers=1)(IMAGES, LABELS)


@pytest.mark.parametrize("head", [heads.Categorical(2), heads.Bernoulli()])
def test_heads_check_shapes(head):
    with pytest.raises(ValueError, match=r"params must have shape"):
        head.log_prob(torch.zeros(2, 7, 1, 3, 3), IMAGES)
