"""Multi-scale models: normalised over all scales, and one sampler of them, to the bit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import pixelfast as pf
from pixelfast import cli, models, plain
from pixelfast.cascade import Cascade
from pixelfast.models import MultiScale

KINDS = ["PixelCNN", "RowLSTM", "DiagonalBiLSTM"]
SHAPE = (1, 5, 6)


def small(kind: str = "PixelCNN", **options) -> MultiScale:
    torch.manual_seed(0)
    options = {"scales": 2, "hidden": 6, "layers": 1, "levels": 3, "context": 4, "kernel": 3} | options
    model = MultiScale(model=kind, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("head", "levels"), [("categorical", 3), ("bernoulli", 2)])
@pytest.mark.parametrize("shape", [(1, 3, 2), (1, 1, 5), (2, 1, 2), (1, 1, 1)], ids=str)
def test_probabilities_of_all_images_sum_to_one(kind, head, levels, shape):
    model = small(kind, channels=shape[0], levels=levels, head=head, classes=2).double()
    images = torch.tensor(list(itertools.product(range(levels), repeat=math.prod(shape)))).view(-1, *shape)
    total = model.log_prob(images, torch.ones(len(images), dtype=torch.int64)).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_by_one_call(kind):
    model = small(kind)
    sampler = pf.compile(model, shape=SHAPE)
    assert isinstance(sampler, Cascade)
    assert [stage.shape for stage in sampler.stages] == [(1, 2, 2), (1, 3, 3), SHAPE]
    assert sampler.verify() < 1e-4
    drawn = sampler.sample(4, seed=3)
    assert drawn.images.shape == (4, *SHAPE)
    assert torch.equal(sampler.log_prob(drawn.images), drawn.log_prob)
    torch.testing.assert_close(model.log_prob(drawn.images), drawn.log_prob, rtol=1e-4, atol=1e-4)
    assert sampler.steps == sum(stage.steps for stage in sampler.stages)
    assert sampler.multiply_adds == sum(stage.multiply_adds for stage in sampler.stages)
    assert str(sampler.explain()).count("in all") == 3


def test_bits_do_not_depend_on_batch_order_or_backend():
    model = small("RowLSTM")
    want = pf.compile(model, shape=SHAPE, order="raster", backend="reference").sample(3, seed=5)
    sampler = pf.compile(model, shape=SHAPE)
    for options in ({}, {"threads": 2, "chunk": 2}, {"team": 2, "threads": 2}):
        got = sampler.sample(3, seed=5, **options)
        assert torch.equal(got.images, want.images)
        assert torch.equal(got.log_prob, want.log_prob)
    last = sampler.sample(1, seed=5, first_index=2)
    assert torch.equal(last.images, want.images[2:])
    assert not torch.equal(sampler.sample(3, seed=6).images, want.images)


def test_every_scale_has_noise_of_its_own():
    """A model that looks at nothing draws different levels at each scale."""
    model = small(levels=256, channels=1)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    image = pf.compile(model, shape=(1, 16, 16)).sample(1, seed=1).images[0, 0]
    scales = [image[::4, ::4], image[::2, ::2], image]
    for before, after in itertools.pairwise(scales):
        # Noise is counted in raster order, so the k-th pixels would be equal if scales shared it.
        drawn = []
        for image in (before, after):
            new = torch.ones_like(image, dtype=torch.bool)
            new[::2, ::2] = len(image) == 4
            drawn.append(new.flatten()[: before.numel()])
        both = drawn[0] & drawn[1]
        assert both.sum() > 10
        same = before.flatten()[both] == after.flatten()[: before.numel()][both]
        assert same.float().mean() < 0.2


def test_known_pixels_are_kept():
    sampler = pf.compile(small(), shape=SHAPE)
    given = torch.arange(30).view(SHAPE) % 3
    known = torch.zeros(SHAPE, dtype=torch.bool)
    known[:, :2] = True
    drawn = sampler.sample(3, seed=1, given=given, known=known)
    assert (drawn.images == given)[:, known].all()
    assert not (drawn.images == given).all()
    assert torch.equal(sampler.log_prob(drawn.images), drawn.log_prob)
    with pytest.raises(ValueError, match="given and known come together"):
        sampler.sample(3, given=given)


def test_per_pixel():
    sampler = pf.compile(small(), shape=SHAPE)
    drawn = sampler.sample(2, seed=1, per_pixel=True)
    assert drawn.log_prob.shape == (2, *SHAPE)
    assert torch.equal(sampler.log_prob(drawn.images, per_pixel=True), drawn.log_prob)
    small_ones = drawn.images[:, :, ::4, ::4]
    assert torch.equal(sampler.stages[0].log_prob(small_ones, per_pixel=True), drawn.log_prob[:, :, ::4, ::4])


def test_labels_and_temperature():
    model = small(classes=2)
    sampler = pf.compile(model, shape=SHAPE)
    assert sampler.verify() < 1e-4
    labels = torch.tensor([0, 1])
    drawn = sampler.sample(2, labels=labels, seed=2)
    assert torch.equal(sampler.log_prob(drawn.images, labels=labels), drawn.log_prob)
    assert not torch.equal(sampler.log_prob(drawn.images, labels=labels.flip(0)), drawn.log_prob)
    likeliest = sampler.sample(2, labels=labels, top_k=1)
    assert (likeliest.log_prob == 0).all()


def test_conditions_by_name_and_any_array():
    sampler = pf.compile(small(classes=2), shape=SHAPE)
    drawn = sampler.sample(2, conditions={"labels": 1}, seed=4)
    assert torch.equal(drawn.images, sampler.sample(2, labels=1, seed=4).images)
    turned = drawn.images.numpy()[:, :, ::-1]
    assert torch.equal(
        sampler.log_prob(turned, conditions={"labels": 1}),
        sampler.log_prob(torch.from_numpy(turned.copy()), labels=1),
    )
    assert sampler.verify(conditions={"labels": torch.tensor([1, 1])}) < 1e-4
    empty = sampler.sample(0, labels=0)
    assert empty.images.shape == (0, *SHAPE)
    assert sampler.log_prob(empty.images, labels=0).shape == (0,)


def test_a_stage_is_causal_in_raster_order():
    """Of its own image; the small one may be seen whole."""
    stage = small("DiagonalBiLSTM", scales=1).stages[0].double()
    images, other = torch.zeros(1, *SHAPE, dtype=torch.int64), torch.zeros(1, 1, 3, 3, dtype=torch.int64)
    before = stage(images, other).flatten(-2)
    for at in range(30):
        changed = images.clone()
        changed.view(-1)[at] = 2
        found = stage(changed, other).flatten(-2)
        assert torch.equal(found[..., : at + 1], before[..., : at + 1])
    changed = other.clone()
    changed[..., 2, 2] = 2
    assert (stage(images, changed).flatten(-2) != before).any()


def test_save_load_and_command_line(tmp_path, capsys):
    model = small("RowLSTM", scales=1)
    model.shape = SHAPE
    model.save(tmp_path)
    loaded = models.load(tmp_path)
    images = torch.randint(0, 3, (2, *SHAPE))
    assert torch.equal(loaded.log_prob(images), model.log_prob(images))
    assert cli.main(["info", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "MultiScale(" in shown
    assert shown.count("receptive field") == 2
    assert cli.main(["sample", str(tmp_path), "-n", "2", "--out", str(tmp_path / "x.npz")]) == 0


def test_gradients_reach_every_scale():
    model = small("DiagonalBiLSTM")
    model.log_prob(torch.randint(0, 3, (2, *SHAPE))).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": "GatedPixelCNN"},
            "model must be one of DiagonalBiLSTM, PixelCNN, RowLSTM, got 'GatedPixelCNN'",
        ),
        ({"scales": 0}, "scales must be at least 1, got 0"),
        ({"context": 0}, "context must be at least 1, got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MultiScale(**options)


def test_what_a_cascade_does_not_do():
    sampler = pf.compile(small(), shape=SHAPE)
    with pytest.raises(ValueError, match="profiled scale by scale"):
        sampler.profile(1)
    with pytest.raises(ValueError, match="a schedule for each scale"):
        sampler.rescheduled(sampler.stages[0].schedule)
    with pytest.raises(ValueError, match="a MultiScale model is several"):
        pf.audit(small(), shape=SHAPE)
    with pytest.raises(ValueError, match="is not drawn in raster order"):
        next(plain.draw(small(), torch.zeros(1, *SHAPE, dtype=torch.int64)))
    with pytest.raises(ValueError, match="brings its own head"):
        pf.compile(small(), shape=SHAPE, head=pf.heads.Categorical(3))
    with pytest.raises(ValueError, match=r"images must have shape \(N, 1, 5, 6\), got \(1, 1, 5, 5\)"):
        sampler.log_prob(torch.zeros(1, 1, 5, 5, dtype=torch.int64))
