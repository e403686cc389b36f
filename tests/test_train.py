"""Training: it learns, resumes to the same bits wherever it was stopped, and refuses before it works."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from pixelfast import models
from pixelfast import train as training
from pixelfast.data import Dataset
from pixelfast.models import GatedPixelCNN, PixelCNN
from pixelfast.train import evaluate, train


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stripes() -> Dataset:
    """Images of 3 levels: stripes that are upright for label 0 and level for label 1."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 22)
    lines = rng.integers(0, 3, (22, 1, 1, 5))
    images = np.where(labels[:, None, None, None], lines.transpose(0, 1, 3, 2), lines)
    images = np.ascontiguousarray(np.broadcast_to(images, (22, 1, 5, 5)), dtype=np.uint8)
    return Dataset("stripes", images, labels.astype(np.int64), 3, ("upright", "level"), "made up")


def new_model(kind=GatedPixelCNN, **options):
    torch.manual_seed(1)
    return kind(**({"levels": 3, "hidden": 6, "layers": 2, "kernel": 3, "classes": 2} | options))


OPTIONS = {"epochs": 3, "batch": 4, "lr": 0.01, "ema": 0.9, "amp": "off", "seed": 3, "progress": False}


def state(folder) -> dict[str, torch.Tensor]:
    with safe_open(folder / "state.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def history(folder) -> list[dict]:
    record = json.loads((folder / "train.json").read_text())
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in record["history"]]


def interrupt_at(monkeypatch, step: int, number: int):
    """Send this process a signal in the middle of a step of the next training run."""
    clip = torch.nn.utils.clip_grad_norm_
    calls = []

    def clip_and_signal(*args):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return clip(*args)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_and_signal)


def test_learns(stripes, tmp_path):
    model = new_model()
    before = evaluate(model, stripes, progress=False)
    trained = train(model, stripes, out=tmp_path, **(OPTIONS | {"epochs": 25, "lr": 0.02}))
    after = evaluate(trained, stripes, progress=False)
    assert before.bits_per_dim == pytest.approx(math.log2(3), abs=0.1)
    assert after.bits_per_dim < 0.75 * before.bits_per_dim
    assert after.nats == pytest.approx(after.bits_per_dim * 25 * math.log(2))
    swapped = Dataset("swapped", stripes.images, 1 - stripes.labels, 3)
    assert evaluate(trained, swapped, progress=False).nats > after.nats


def test_the_checkpoint_is_what_train_returns(stripes, tmp_path):
    trained = train(new_model(), stripes, out=tmp_path / "new" / "run", valid=stripes, **OPTIONS)
    folder = tmp_path / "new" / "run"
    loaded = models.load(folder)
    for name, weight in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    assert (loaded.shape, loaded.class_names) == ((1, 5, 5), ("upright", "level"))
    names = {p.name for p in folder.iterdir() if not p.name.startswith("events")}
    assert names == {"config.json", "model.safetensors", "state.safetensors", "train.json"}
    record = json.loads((folder / "train.json").read_text())
    assert record["finished"]
    assert record["step"] == 3 * 6
    assert record["arguments"] == {k: v for k, v in OPTIONS.items() if k != "progress"}
    assert record["data"]["sha256"] == stripes.sha256
    score = evaluate(trained, stripes, batch=4, progress=False).bits_per_dim
    assert record["history"][-1]["valid_bits_per_dim"] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("kind", [PixelCNN, GatedPixelCNN])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [2, 6, 9])  # in the first epoch, at its end, in the second
def test_a_resumed_run_ends_with_the_same_bits(stripes, tmp_path, monkeypatch, kind, number, step):
    train(new_model(kind), stripes, out=tmp_path / "whole", **OPTIONS)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, number)
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
            train(new_model(kind), stripes, out=tmp_path / "parts", **OPTIONS)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    stopped = json.loads((tmp_path / "parts" / "train.json").read_text())
    assert (stopped["step"], stopped["finished"]) == (step, False)
    models.load(tmp_path / "parts")
    torch.manual_seed(5)  # whatever the process did before must not matter
    other = kind(**new_model(kind).config)
    train(other, stripes, out=tmp_path / "parts", resume=True, **OPTIONS)
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert history(tmp_path / "whole") == history(tmp_path / "parts")


def test_max_minutes_stops_with_a_checkpoint(stripes, tmp_path):
    train(new_model(), stripes, out=tmp_path / "whole", **OPTIONS)
    for _ in range(OPTIONS["epochs"] * 6):
        train(new_model(), stripes, out=tmp_path / "parts", resume=True, max_minutes=0, **OPTIONS)
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    record = json.loads((tmp_path / "parts" / "train.json").read_text())
    assert record["finished"]
    assert len(record["commands"]) == 18


def test_bf16(stripes, tmp_path):
    trained = train(new_model(), stripes, out=tmp_path, **(OPTIONS | {"amp": "bf16", "epochs": 1}))
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trained.parameters())


def test_without_labels(stripes, tmp_path):
    train(new_model(classes=None), stripes, out=tmp_path, **(OPTIONS | {"epochs": 1}))


def test_grids_of_samples(stripes, tmp_path):
    options = OPTIONS | {"epochs": 2, "sample_every": 2}
    train(new_model(), stripes, out=tmp_path, **options)
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["epoch-0002.png"]
    with Image.open(tmp_path / "samples" / "epoch-0002.png") as picture:
        assert picture.width == picture.height


def test_a_grid_that_fails_does_not_end_the_training(stripes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pixelfast.viz.save_grid", lambda *args, **options: 1 / 0)
    options = OPTIONS | {"epochs": 1, "sample_every": 1, "progress": True}
    train(new_model(), stripes, out=tmp_path, **options)
    assert "no samples written: division by zero" in "".join(capsys.readouterr())
    assert json.loads((tmp_path / "train.json").read_text())["finished"]


def test_saving_that_fails_keeps_the_old_checkpoint(stripes, tmp_path, monkeypatch):
    train(new_model(), stripes, out=tmp_path, max_minutes=0, **OPTIONS)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            train(new_model(), stripes, out=tmp_path, resume=True, max_minutes=0, **OPTIONS)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if "events" not in p.name} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, r"\[train\] epochs must be at least 1, got 0"),
        ({"batch": 0}, r"\[train\] batch must be at least 1, got 0"),
        ({"seed": -1}, r"\[train\] seed must be at least 0, got -1"),
        ({"lr": 0.0}, r"\[train\] lr must be positive, got 0.0"),
        ({"lr": math.nan}, r"\[train\] lr must be positive, got nan"),
        ({"ema": 1.0}, r"\[train\] ema must be in \[0, 1\), got 1.0"),
        ({"amp": "fp8"}, r'amp must be "auto", "off" or "bf16", got \'fp8\''),
    ],
)
def test_bad_options(stripes, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(new_model(), stripes, out=tmp_path / "run", **(OPTIONS | options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"channels": 3}, "stripes has 1 channels, the model 3"),
        ({"levels": 4}, "stripes has 3 levels, the model 4"),
        ({"classes": 1}, "stripes has 2 classes, the model 1 classes"),
    ],
)
def test_data_that_do_not_fit(stripes, tmp_path, model, message):
    with pytest.raises(ValueError, match=message):
        train(new_model(**model), stripes, out=tmp_path / "run", **OPTIONS)
    with pytest.raises(ValueError, match=message):
        evaluate(new_model(**model), stripes)


def test_unlabelled_and_empty_data(stripes, tmp_path):
    with pytest.raises(ValueError, match="bare has no labels, the model 2 classes"):
        train(new_model(), Dataset("bare", stripes.images, levels=3), out=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"\[evaluate\] none holds no images"):
        evaluate(new_model(), Dataset("none", stripes.images[:0], levels=3))


def test_output_that_cannot_be_written(stripes, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="File exists"):
        train(new_model(), stripes, out=tmp_path / "file", **OPTIONS)
    with pytest.raises(OSError, match="Not a directory"):
        train(new_model(), stripes, out=tmp_path / "file" / "run", **OPTIONS)


def test_resuming_something_else(stripes, tmp_path):
    options = OPTIONS | {"max_minutes": 0}
    train(new_model(), stripes, out=tmp_path, **options)
    with pytest.raises(ValueError, match="already holds a run: resume it, or choose another folder"):
        train(new_model(), stripes, out=tmp_path, **options)
    with pytest.raises(ValueError, match=r"cannot resume .* its arguments has lr=0.01, not 0.02"):
        train(new_model(), stripes, out=tmp_path, resume=True, **(options | {"lr": 0.02}))
    with pytest.raises(ValueError, match=r"cannot resume .* its config has hidden=6, not 8"):
        train(new_model(hidden=8), stripes, out=tmp_path, resume=True, **options)
    other = stripes.take(np.arange(10), "the first 10")
    with pytest.raises(ValueError, match=r"cannot resume .* its data has"):
        train(new_model(), other, out=tmp_path, resume=True, **options)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is truncated or no training state"):
        train(new_model(), stripes, out=tmp_path, resume=True, **options)


def test_a_loss_that_is_not_finite(stripes, tmp_path):
    with pytest.raises(ValueError, match=r"the loss is nan at step .*: try a lower lr"):
        train(new_model(), stripes, out=tmp_path, **(OPTIONS | {"lr": 1e30}))


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(5):
            picture = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


def run(*words) -> models.AutoregressiveModel:
    parser = argparse.ArgumentParser()
    training.add_arguments(parser)
    return training.run(parser.parse_args([str(word) for word in words]))


def test_command_line(pictures, tmp_path, capsys):
    small = ("--hidden", 6, "--layers", 1, "--kernel", 3, "--epochs", 1, "--batch", 4, "--amp", "off")
    common = ("--data", pictures, "--out", tmp_path / "run", "--sample-every", 0, *small)
    model = run(*common, "--model", "pixelcnn", "--classes", "--levels", 16, "--valid", 2, "--threads", 1)
    assert isinstance(model, PixelCNN)
    assert (model.channels, model.levels, model.classes, model.class_names) == (3, 16, 2, ("cat", "dog"))
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert record["data"]["images"] == 8
    assert record["valid"]["images"] == 2
    assert record["data"]["levels"] == 16
    assert "quantized from 256 to 16 levels" in record["data"]["description"]
    assert "bits/dim" in capsys.readouterr().err


def test_command_line_of_a_mixture(pictures, tmp_path):
    small = ("--hidden", 4, "--blocks", 1, "--mixtures", 2, "--dropout", 0.1, "--epochs", 1, "--batch", 4)
    common = ("--data", pictures, "--sample-every", 0, "--levels", 16, "--model", "pixelcnn-pp", *small)
    model = run(*common, "--out", tmp_path / "run", "--classes")
    assert isinstance(model, models.PixelCNNPlusPlus)
    assert model.config["dropout"] == 0.1
    assert models.load(tmp_path / "run").config == model.config


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("lstm2d", "LSTM2d", ("--layers", 1)),
        ("row-lstm", "RowLSTM", ("--layers", 1, "--kernel", 3)),
        ("diagonal-bilstm", "DiagonalBiLSTM", ("--layers", 1, "--kernel", 3)),
        ("multi-scale", "MultiScale", ("--layers", 1, "--scales", 2, "--context", 4)),
        ("pixelsnail", "PixelSNAIL", ("--layers", 1, "--blocks", 1, "--stride", 2, "--key", 4, "--value", 5)),
        ("pixel-transformer", "PixelTransformer", ("--layers", 1, "--heads", 2, "--dropout", 0.1)),
    ],
)
def test_command_line_of_every_family(pictures, tmp_path, name, kind, options):
    common = ("--data", pictures, "--sample-every", 0, "--levels", 4, "--hidden", 8, "--epochs", 1)
    model = run(*common, "--model", name, *options, "--out", tmp_path / "run", "--classes")
    assert type(model).__name__ == kind
    for option, value in zip(options[::2], options[1::2], strict=True):
        assert model.config[option[2:]] == value
    loaded = models.load(tmp_path / "run")
    assert (loaded.config, loaded.shape) == (model.config, (3, 3, 4))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--threads", 0), "threads must be at least 1, got 0"),
        (("--limit", 0), "limit must be at least 1, got 0"),
        (("--valid", 10), r"valid must be in \[0, 10\), got 10"),
        (("--levels", 300), r"levels must be in \[2, 256\], got 300"),
        (("--head", "bernoulli"), "levels must be 2, got 256"),
        (("--blocks", 2), "gated-pixelcnn has no blocks; leave out --blocks"),
    ],
)
def test_bad_command_lines(pictures, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        run("--data", pictures, "--out", tmp_path / "run", *words)


def test_classes_of_a_set_without_labels(pictures, tmp_path):
    with pytest.raises(ValueError, match="cat has no labels, so --classes cannot be used"):
        run("--data", pictures / "cat", "--out", tmp_path / "run", "--classes")
