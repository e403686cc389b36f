"""Pictures of what a pixel sees: reach, strength, the order of drawing, and why there is no shorter one."""

import functools
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import SPECS, case_of, pyramid

import pixelfast as pf
from pixelfast import _pictures, _sight, viz
from pixelfast.orders import limit
from pixelfast.prepare import make_plan, prepare
from pixelfast.readiness import wavefront
from pixelfast.receptive import receptive_field, seen_by

HATCH, TOGETHER = _pictures.kField["!"][0], _pictures.kTogether
SHAPE = (1, 7, 9)


def new(kind, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        defaults = {"levels": 3, "hidden": 8, "layers": 2, "kernel": 3}
        return getattr(pf.models, kind)(**(defaults | options)).eval()


@functools.cache
def sight_of(kind, shape=SHAPE, order="auto", **options):
    return _sight.look(new(kind, channels=shape[0], **options), shape=shape, order=order)


@functools.cache
def picture_of(kind):
    return viz.receptive_field(new(kind), shape=SHAPE, scale=10, images=1)


def panel(picture, index, shape=SHAPE, scale=10):
    """(H, W, scale, scale, 3): the cells of the first panel, or of the second."""
    _, height, width = shape
    top = _pictures.kMargin + 1
    left = top + index * (max(_pictures.kNarrowest, width * scale + 1) + _pictures.kMargin)
    part = np.asarray(picture)[top : top + height * scale, left : left + width * scale]
    return part.reshape(height, scale, width, scale, 3).swapaxes(1, 2)


def hatched(cells):
    return (cells == HATCH).all(-1).any((2, 3))


class Foreign(nn.Module):
    """A causal network of floats in [-1, 1], of two levels."""

    def __init__(self, colours=1, outputs=1):
        super().__init__()
        torch.manual_seed(0)
        self.above, self.left = nn.Conv2d(colours, 4, (1, 3)), nn.Conv2d(colours, 4, 1)
        self.last = nn.Conv2d(4, outputs, 1)

    def forward(self, x):
        above = self.above(F.pad(x, (1, 1, 1, -1)))
        return self.last(torch.tanh(above + self.left(F.pad(x, (1, -1)))))


FED = {"head": pf.heads.Bernoulli(), "to_input": pf.inputs.scaled(-1, 1)}


@functools.cache
def foreign():
    return _sight.look(Foreign(), shape=SHAPE, **FED)


# --- reach ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PixelCNN", "GatedPixelCNN"])
def test_reach_is_that_of_the_plan_and_of_the_middle_pixel(kind):
    plan = pf.compile(new(kind), shape=SHAPE, backend="reference").schedule.plan
    field = receptive_field(plan, (3, 4))
    sight = sight_of(kind)
    assert sight.field.pixel == (3, 4)
    assert (sight.field.mask == field.mask).all()
    shades = {_pictures._ramp(_pictures.kStrength, t) for t in np.linspace(0, 1, 4001)}
    seen = np.array(
        [[tuple(c) in shades for c in row] for row in panel(picture_of(kind), 0)[:, :, 0, 0].tolist()]
    )
    assert (seen == field.mask).all()


def test_only_a_blind_spot_is_hatched():
    field = sight_of("PixelCNN").field
    blind = field.reach & ~field.mask
    assert blind.any()
    assert (hatched(panel(picture_of("PixelCNN"), 0)) == blind).all()
    assert not hatched(np.asarray(picture_of("GatedPixelCNN"))[None, None]).any()
    assert not hatched(panel(picture_of("PixelCNN"), 1)).any()


def test_any_pixel_can_be_chosen():
    model = new("PixelCNN")
    assert _sight.look(model, shape=SHAPE, pixel=(6, 0), images=1).field.pixel == (6, 0)
    first = _sight.look(model, shape=SHAPE, pixel=(0, 0), images=1)
    assert not first.strength.any()
    assert first.field.seen == 0
    picture = viz.receptive_field(model, shape=SHAPE, pixel=(6, 8), images=1, scale=10)
    assert (panel(picture, 0)[6, 8, 0, 0] == _pictures.kInk).all()


# --- strength ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shape", "options"),
    [
        ("PixelCNN", SHAPE, {}),
        ("GatedPixelCNN", SHAPE, {}),
        ("GatedPixelCNN", (3, 5, 6), {"classes": 3}),
    ],
)
def test_strength_is_positive_where_something_is_seen_alone(kind, shape, options):
    sight = sight_of(kind, shape, **options)
    others = sight.field.mask.copy()
    others[sight.field.pixel] = False
    assert ((sight.strength > 0) == others).all()
    assert sight.strength.max() <= 1


@pytest.mark.parametrize("kind", ["PixelCNN", "GatedPixelCNN"])
def test_what_the_plan_does_not_see_has_no_strength_when_measured(kind):
    module = new(kind)
    prepared = prepare(module, shape=SHAPE, head=None, to_input=None, conditions=None, output=None)
    planned, pixel = make_plan(prepared), (3, 4)
    images = torch.randint(0, 3, (2, *SHAPE), generator=torch.Generator().manual_seed(0))
    found = _sight.strength(prepared, planned.head, pixel, np.ones(SHAPE[1:], bool), images)
    mask = receptive_field(planned.plan, pixel).mask
    assert ((found > 0) == mask).all()


def test_strength_is_the_change_of_the_distribution():
    images = pf.compile(Foreign(), shape=SHAPE, **FED).sample(4).images.double() * 2 - 1
    double = Foreign().double().eval()
    for at in np.ndindex(*SHAPE[1:]):
        changed = images.clone()
        changed[:, 0, *at] *= -1
        p, q = (double(x).sigmoid()[:, 0, 3, 4] for x in (images, changed))
        want = 0.0 if at == (3, 4) else (p - q).abs().mean().item()
        assert foreign().strength[at] == pytest.approx(
            want, abs=1e-7
        )  # floats in [-1, 1] are made in float32


def test_probabilities_are_as_strong_as_their_logits():
    class Sigmoid(Foreign):
        def forward(self, x):
            return {"other": x.mean(), "p": super().forward(x).sigmoid()}

    found = _sight.look(Sigmoid(), shape=SHAPE, output="p", **FED).strength
    np.testing.assert_allclose(found, foreign().strength, atol=1e-12)


def test_levels_that_are_embedded_have_a_strength():
    class Embedded(Foreign):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(2, 1)

        def forward(self, images):
            return super().forward(self.embedding(images)[..., 0])

    sight = _sight.look(Embedded(), shape=SHAPE, head=pf.heads.Bernoulli())
    assert ((sight.strength > 0) == sight.field.mask).all()


def test_mixtures_have_a_strength():
    head = pf.heads.LogisticMixture(2, levels=16)
    sight = _sight.look(Foreign(3, 20), shape=(3, 4, 5), head=head, to_input=pf.inputs.scaled(-1, 1))
    assert sight.field.seen == 4
    assert ((sight.strength > 0) == sight.field.mask).sum() == 19  # all but the pixel, which sees its own red


class Fussy(Foreign):
    """Takes no other dtype, and no other batch, than when it was compiled."""

    def forward(self, images):
        assert len(images) == 2
        assert self.last.weight.dtype == torch.float32
        return super().forward(images.float() * 2 - 1)


def test_a_forward_of_one_dtype_and_batch_is_measured_too():
    found = _sight.look(Fussy(), shape=SHAPE, head=pf.heads.Bernoulli())
    np.testing.assert_allclose(found.strength, foreign().strength, atol=1e-6)


def test_nothing_is_left_changed():
    model = new("GatedPixelCNN").train()
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    sight = _sight.look(model, shape=SHAPE, images=1)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    again = _sight.look(model, shape=SHAPE, images=1)
    assert (sight.strength == again.strength).all()


def test_without_images_nothing_is_measured():
    model = new("PixelCNN")
    mask = sight_of("PixelCNN").field.mask
    assert _sight.look(model, shape=SHAPE, images=0).strength is None
    picture = viz.receptive_field(model, shape=SHAPE, images=0, scale=10)
    seen = (panel(picture, 0)[:, :, 0, 0] == _pictures.kField["#"][0]).all(-1)
    assert (seen == mask).all()
    assert picture.height < picture_of("PixelCNN").height


# --- the order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["auto", "raster", "wavefront"])
def test_the_order_has_as_many_colours_as_steps(order):
    model = new("PixelCNN")
    steps = pf.compile(model, shape=SHAPE, order=order).steps
    picture = viz.receptive_field(model, shape=SHAPE, order=order, images=1, scale=10)
    colours = panel(picture, 1)[:, :, 0, 0].copy()
    together = (colours == TOGETHER).all(-1)
    together[3, 4] = True
    colours[together] = TOGETHER
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == steps
    sight = sight_of("PixelCNN", order=order)
    assert len(np.unique(sight.steps)) == steps == sight.explanation.steps
    assert (together == (sight.steps == sight.steps[3, 4])).all()


def test_colours_of_a_pixel_are_one_step_of_the_picture():
    sight = sight_of("GatedPixelCNN", (3, 5, 6), classes=3)
    assert len(np.unique(sight.steps)) * 3 == sight.explanation.steps


@pytest.mark.parametrize("case", [case_of(SPECS[9]), pyramid()], ids=str)
def test_the_limit_is_a_dependence_that_a_smaller_skew_would_break(case):
    found = limit(case.plan)
    assert found.skew > 1
    seen = seen_by(case.plan, [(c, *found.of) for c in range(case.shape[0])])
    assert seen[:, :, *found.on].any()
    for skew, breaks in ((found.skew - 1, True), (found.skew, False)):
        steps = wavefront(case.shape, skew).steps[0]
        assert (steps[found.on] >= steps[found.of]) == breaks


class Rows(nn.Module):
    """Sees the row above, up to `right` columns to the right, and the pixel to the left."""

    def __init__(self, right):
        super().__init__()
        self.right = right
        self.above, self.left = nn.Conv2d(1, 1, (1, 2 * right + 1)), nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.above(F.pad(x, (self.right, self.right, 1, -1))) + self.left(F.pad(x, (1, -1)))


@pytest.mark.parametrize(
    ("right", "shape", "order", "want"),
    [
        (0, (1, 3, 6), "wavefront", ""),
        (0, (1, 3, 6), "raster", "the least skew of a wavefront is 1 (8 steps)"),
        (2, (1, 3, 6), "wavefront", "no smaller skew: pixel (y=1, x=0) depends on pixel (y=0, x=2)"),
        (
            2,
            (1, 3, 6),
            "raster",
            "the least skew of a wavefront is 3 (12 steps): pixel (y=1, x=0) depends on pixel (y=0, x=2)",
        ),
        (
            5,
            (1, 3, 6),
            "auto",
            "no wavefront: pixel (y=1, x=0) depends on pixel (y=0, x=5), the end of the row above, so rows cannot "
            "overlap",
        ),
        (0, (1, 1, 6), "auto", "no wavefront: the image is one row"),
    ],
)
def test_explain_says_why_it_takes_no_fewer_steps(right, shape, order, want):
    explained = pf.compile(Rows(right), shape=shape, order=order, **FED).explain()
    assert explained.why == want
    lines = str(explained).splitlines()
    assert lines[1] == want
    assert lines[2 if want else 1] == ""


def test_of_several_scales_the_largest_is_seen():
    model = pf.models.MultiScale(
        model="PixelCNN", levels=3, hidden=6, layers=1, kernel=3, context=2, classes=2
    )
    sight = _sight.look(model, shape=(1, 6, 5), images=1)
    assert sight.explanation.shape == (1, 6, 5)
    assert ((sight.strength > 0) == sight.field.mask).all()
    with pytest.raises(
        ValueError, match=r"\[receptive_field\] a MultiScale model brings its own head, inputs"
    ):
        _sight.look(model, shape=(1, 6, 5), **FED)


# --- pictures ---------------------------------------------------------------------------------------------------


def test_a_foreign_module_with_an_input_of_its_own():
    picture = viz.receptive_field(Foreign(), shape=SHAPE, scale=10, **FED)
    assert picture.mode == "RGB"
    seen = {(y, x) for y, x in np.ndindex(7, 9) if tuple(panel(picture, 0)[y, x, 0, 0]) < (200, 0, 0)}
    assert seen == {(2, 3), (2, 4), (2, 5), (3, 3), (3, 4)}


def test_the_shape_is_that_of_the_model():
    model = new("PixelCNN")
    model.shape = SHAPE
    assert viz.receptive_field(model, scale=10, images=1).tobytes() == picture_of("PixelCNN").tobytes()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 5)])
def test_images_of_a_pixel_or_a_row(shape):
    model = new("GatedPixelCNN", channels=shape[0])
    picture = viz.receptive_field(model, shape=shape, images=1)
    ink = (panel(picture, 0, shape, 24)[:, :, 0, 0] == _pictures.kInk).all(-1)
    assert np.argwhere(ink).tolist() == [[shape[1] // 2, shape[2] // 2]]


def test_several_models_stand_side_by_side_under_their_names():
    models = {"plain": new("PixelCNN"), "gated": new("GatedPixelCNN"), "again": new("PixelCNN")}
    three = viz.receptive_fields(models, columns=3, scale=6, shape=SHAPE, images=4)
    sights = {
        "plain": sight_of("PixelCNN"),
        "gated": sight_of("GatedPixelCNN"),
        "again": sight_of("PixelCNN"),
    }
    one, two, same = (_pictures._sheet(sights, columns, 6, 224) for columns in (1, 2, 3))
    assert three.tobytes() == same.tobytes()
    assert (one.width * 2, one.width * 3) == (two.width, three.width)
    assert one.height > two.height > three.height
    cards = [np.asarray(three)[20:140, 20 + i * one.width : one.width * (i + 1) - 20] for i in range(3)]
    assert (cards[0][22:] == cards[2][22:]).all()
    assert (cards[0][:20] != cards[2][:20]).any()
    assert (cards[0][22:] != cards[1][22:]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shape": None},
            "[receptive_field] PixelCNN does not say the shape of its images; pass shape=(C, H, W)",
        ),
        ({"shape": (1, 7)}, "[receptive_field] shape must be three positive integers (C, H, W), got (1, 7)"),
        ({"order": "spiral"}, "[receptive_field] order must be one of auto, raster, wavefront, got 'spiral'"),
        ({"images": -1}, "[receptive_field] images must be an integer of at least 0, got -1"),
        ({"images": 1.5}, "[receptive_field] images must be an integer of at least 0, got 1.5"),
        ({"scale": 0}, "[receptive_field] scale must be an integer of at least 1, got 0"),
        ({"scale": 2.5}, "[receptive_field] scale must be an integer of at least 1, got 2.5"),
        ({"pixel": 3}, "[receptive_field] pixel must be two integers (y, x), got 3"),
        ({"pixel": (7, 0)}, "[receptive_field] pixel must lie in 7 x 9, got (7, 0)"),
        ({"shape": (2, 7, 9)}, "[compile] the model has 1 channels, but shape is (2, 7, 9)"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        viz.receptive_field(new("PixelCNN"), **({"shape": SHAPE} | options))


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match=r"\[receptive_field\] module must be a torch.nn.Module, got a int"):
        viz.receptive_field(3)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({}, {}, r"\[receptive_fields\] there must be at least 1 model, got 0"),
        ({"a": None}, {"columns": 0}, r"\[receptive_fields\] columns must be at least 1, got 0"),
        ({"a": None}, {"scale": -1}, r"\[receptive_fields\] scale must be an integer of at least 1, got -1"),
    ],
)
def test_bad_sheets_are_refused(models, options, message):
    with pytest.raises(ValueError, match=message):
        viz.receptive_fields(models, **options)


def test_a_model_that_is_not_causal_is_refused():
    model = nn.Conv2d(1, 1, 3, padding=1)
    with pytest.raises(pf.CausalityError, match="the model is not causal"):
        viz.receptive_field(model, shape=SHAPE, **FED)


# --- the figure of the documentation ----------------------------------------------------------------------------


def script():
    path = Path(__file__).parents[1] / "docs/figures/receptive_fields.py"
    spec = importlib.util.spec_from_file_location("receptive_fields", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figure_has_all_families():
    families = {name for name in pf.models.__all__ if name in pf.models.AutoregressiveModel.registry}
    assert families == {*script().OPTIONS}


@pytest.mark.parametrize(
    ("lacks", "message"), [("PixelCNN", "OPTIONS lack PixelCNN: say how"), (None, "no Pixel; ")]
)
def test_a_family_that_cannot_be_made_is_no_figure(monkeypatch, capsys, tmp_path, lacks, message):
    figure, out = script(), tmp_path / "figure.png"
    registry = pf.models.AutoregressiveModel.registry
    monkeypatch.setattr(figure, "OPTIONS", {name: {} for name in registry if name != lacks})
    monkeypatch.setattr("sys.argv", ["receptive_fields", "--out", str(out), "Pixel"])
    assert figure.main() == 1
    assert message in capsys.readouterr().err
    assert not out.exists()
