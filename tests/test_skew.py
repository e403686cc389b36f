"""A Gated PixelCNN with a skew stays in its wedge, and is otherwise a model like any other."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from zoo import Case, assert_same_on, dependence, labels_of, loud

import pixelfast as pf
from pixelfast import cli, data, testing, train
from pixelfast.models import GatedPixelCNN, gated_pixelcnn
from pixelfast.receptive import receptive_field

# Skews, shapes and further options: deep enough to use up the wedge, in grey and in colours, with and without classes.
CASES = [
    (1, (1, 5, 7), {}),
    (2, (1, 6, 9), {"classes": 3, "kernel": 3, "layers": 8}),
    (2, (3, 5, 7), {"classes": 3}),
    (3, (3, 4, 5), {"head": "bernoulli", "levels": 2}),
    (4, (1, 5, 8), {"kernel": 7}),
    (2, (1, 1, 6), {}),
    (2, (1, 6, 1), {}),
    (2, (3, 1, 1), {}),
]
every_case = pytest.mark.parametrize(("skew", "shape", "options"), CASES)


def new_model(skew: int | None, channels: int = 1, **options) -> GatedPixelCNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"levels": 4, "hidden": 6, "layers": 7, "kernel": 5} | options
        return GatedPixelCNN(channels=channels, skew=skew, **options).eval()


def new_case(skew: int | None, shape: tuple[int, int, int], options: dict) -> Case:
    model = new_model(skew, shape[0], **options)
    return Case(loud(model, model.last, shape), shape)


def live(model: torch.nn.Module) -> int:
    dead = sum(int((mask == 0).sum()) for mask in model.buffers())
    return sum(p.numel() for p in model.parameters()) - dead


def wedge(shape: tuple[int, int, int], right: int, slope: int) -> np.ndarray:
    """bool (D, D): earlier sub-pixels, up to `right` columns to the right in the row above, then `slope` more a row."""
    c, y, x = (axis.ravel() for axis in np.indices(shape))
    of, on = np.s_[:, None], np.s_[None]
    above = (y[on] < y[of]) & (x[on] - x[of] <= right + slope * (y[of] - y[on] - 1))
    left = (y[on] == y[of]) & (x[on] < x[of])
    return above | left | ((y[on] == y[of]) & (x[on] == x[of]) & (c[on] < c[of]))


# --- the wedge --------------------------------------------------------------------------------------------


@every_case
def test_what_a_pixel_depends_on_lies_in_the_wedge(skew, shape, options):
    found = dependence(new_case(skew, shape, options))
    assert not (found & ~wedge(shape, skew - 1, skew)).any()
    assert not (wedge(shape, skew - 1, 1) & ~found).any()  # within this, no blind spot


@pytest.mark.parametrize(("kernel", "layers"), [(3, 1), (3, 5), (5, 2), (7, 5)])
@pytest.mark.parametrize("skew", [1, 2, 3, 4, 7, 8, 9, None])
def test_readiness_finds_the_skew(kernel, layers, skew):
    ordinary = kernel // 2 + layers
    model = new_model(skew, hidden=2, kernel=kernel, layers=layers)
    sampler = pf.compile(model, shape=(1, 5, 13), order="wavefront")
    want = min(skew or ordinary, ordinary)
    assert sampler.schedule.order.skew == want
    assert sampler.steps == 13 + want * 4


@pytest.mark.parametrize(("skew", "steps"), [(1, 63), (2, 94), (4, 156), (8, 280), (None, 590)])
def test_steps_of_a_deep_network(skew, steps):
    model = GatedPixelCNN(hidden=4, layers=15, levels=4, skew=skew)
    sampler = pf.compile(model, shape=(1, 32, 32), order="wavefront")
    assert sampler.schedule.order.skew == (skew or 18)
    assert sampler.steps == steps
    if skew:  # which is worth it
        chosen = pf.compile(model, shape=(1, 32, 32))
        assert str(chosen.order) == "wavefront"
        assert skew <= chosen.schedule.order.skew <= 2 * skew


def test_steps_of_colours():
    model = GatedPixelCNN(channels=3, hidden=6, layers=4, levels=4, classes=2, skew=2)
    sampler = pf.compile(model, shape=(3, 9, 7), order="wavefront")
    assert (sampler.schedule.order.skew, sampler.steps) == (2, 3 * (7 + 2 * 8))


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ((2, 3, 1, 2), ["xxx", "xxx"]),
        ((2, 3, 0, 2), [" xxx", "xxx "]),
        ((1, 3, 0, 2), ["xxx"]),
        ((3, 7, 3, 4), ["xxxxxxx"] * 3),
        ((3, 7, 1, 2), ["  xxxxxxx", "  xxxxxxx", "xxxxxxx  "]),
        ((3, 7, 0, 1), ["  xxxxxxx", " xxxxxxx ", "xxxxxxx  "]),
    ],
)
def test_taps(arguments, rows):
    taps, before = gated_pixelcnn._wedge(*arguments)
    assert ["".join(" x"[int(tap)] for tap in row) for row in taps] == rows
    assert taps[-1].nonzero().max() == before + arguments[2]


def test_its_receptive_field():
    field = receptive_field(pf.compile(new_model(4, layers=6), shape=(1, 4, 25)).schedule.plan)
    right = [int(row.nonzero()[0].max()) - field.pixel[1] for row in field.mask[:-1]]
    assert right == [5, 4, 3]  # at most 11, 7, 3


# --- as many weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("skew", [1, 2, 3, 8])
def test_it_has_as_many_live_weights_as_the_ordinary_network(kernel, skew):
    options = {"channels": 3, "kernel": kernel, "classes": 2}
    assert live(new_model(skew, **options)) == live(new_model(None, **options))


@pytest.mark.parametrize("skew", [9, 10, 1000])
def test_from_some_skew_on_it_is_the_ordinary_network(skew):
    ordinary, skewed = new_model(None, classes=2), new_model(skew, classes=2)
    assert not list(skewed.buffers())
    assert ordinary.state_dict().keys() == skewed.state_dict().keys()
    for name, weight in ordinary.state_dict().items():
        assert torch.equal(weight, skewed.state_dict()[name])
    assert list(new_model(8).buffers())


def test_fresh_gates_neither_saturate_nor_vanish():
    model = GatedPixelCNN(hidden=32, layers=12, skew=2)
    spreads = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, inputs, outputs: spreads.append(outputs[0].std().item()))
    model(torch.randint(0, 256, (4, 1, 16, 16)))
    assert all(0.3 < spread < 2 for spread in spreads)


# --- a model like any other -------------------------------------------------------------------------------


@every_case
def test_both_orders_draw_the_same_images(skew, shape, options):
    case = new_case(skew, shape, options)
    labels = case.labels(4)
    want = case.sampler("raster").sample(4, seed=3, **labels)
    got = case.sampler("wavefront").sample(4, seed=3, **labels)
    assert torch.equal(got.images, want.images)
    assert torch.equal(got.log_prob, want.log_prob)
    assert torch.equal(case.sampler("wavefront").log_prob(want.images, **labels), want.log_prob)
    exact = case.exact_log_prob(want.images)
    torch.testing.assert_close(want.log_prob.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("isa", pf._cpu.isas())
def test_every_rung_draws_the_same_images(isa):
    case = new_case(2, (1, 5, 6), {})
    assert_same_on(case.sampler("wavefront", "reference"), isa, seed=5)


@every_case
def test_it_is_causal(skew, shape, options):
    model = new_case(skew, shape, options).module
    conditions = {"labels": torch.int64} if model.classes else None
    testing.assert_causal(model, shape, conditions=conditions)


def test_its_audit():
    audit = pf.audit(
        new_case(2, (3, 4, 5), {"classes": 2}).module, (3, 4, 5), conditions={"labels": torch.int64}
    )
    assert audit.causal
    assert audit.steps.skew == 2


def test_save_and_load(tmp_path):
    model = new_model(2, classes=3)
    model.save(tmp_path)
    loaded = pf.models.load(tmp_path)
    assert loaded.config == model.config
    assert loaded.config["skew"] == 2
    images = torch.randint(0, 4, (2, 1, 5, 7))
    assert torch.equal(loaded(images, **labels_of(model, 2)), model(images, **labels_of(model, 2)))


def test_the_ordinary_network_is_saved_as_before(tmp_path):
    new_model(None).save(tmp_path)
    assert "skew" not in json.loads((tmp_path / "config.json").read_text())["config"]


def test_the_command_line(tmp_path, capsys):
    np.savez(tmp_path / "data.npz", images=np.random.default_rng(0).integers(0, 4, (8, 5, 6), dtype=np.uint8))
    options = (
        f"--data {tmp_path}/data.npz --levels 4 --hidden 4 --layers 2 --kernel 3 --epochs 1 --sample-every 0"
    )
    argv = ["train", *options.split(), "--out", str(tmp_path / "run"), "--skew"]
    assert cli.main([*argv, "0"]) == 2
    assert "[GatedPixelCNN] skew must be at least 1, got 0" in capsys.readouterr().err
    assert cli.main([*argv, "2"]) == 0
    capsys.readouterr()
    assert cli.main(["info", str(tmp_path / "run"), "--order", "wavefront"]) == 0
    out = capsys.readouterr().out
    assert "skew=2" in out
    assert re.search(r"order +wavefront, 14 steps for 30 sub-pixels", out)
    assert cli.main(["sample", str(tmp_path / "run"), "-n", "2", "--out", str(tmp_path / "a.npz")]) == 0


def test_other_models_have_no_skew(tmp_path):
    parser = train.argparse.ArgumentParser()
    train.add_arguments(parser)
    options = parser.parse_args(["--data", "d", "--out", "o", "--model", "pixelcnn", "--skew", "2"])
    dataset = data.Dataset("four", np.zeros((1, 1, 4, 4), np.uint8), levels=4)
    with pytest.raises(ValueError, match=r"\[train\] pixelcnn has no skew; leave out --skew"):
        train._model(options, dataset, None)


@pytest.mark.parametrize(
    ("skew", "error", "message"),
    [
        (0, ValueError, "[GatedPixelCNN] skew must be at least 1, got 0"),
        (-2, ValueError, "[GatedPixelCNN] skew must be at least 1, got -2"),
        (2.0, TypeError, "[GatedPixelCNN] skew must be an integer, got 2.0"),
        ("2", TypeError, "[GatedPixelCNN] skew must be an integer, got '2'"),
    ],
)
def test_bad_skews(skew, error, message):
    with pytest.raises(error, match=re.escape(message)):
        GatedPixelCNN(skew=skew)
