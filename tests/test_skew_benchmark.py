"""The benchmark of skews trains, scores, times and records. No speeds here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pixelfast import models

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks import skew


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The benchmark's arguments for networks and data that take no time."""
    monkeypatch.setattr(skew, "SKEWS", (None, 2))
    monkeypatch.setattr(skew, "SEEDS", {None: (0, 1), 2: (0,)})
    monkeypatch.setattr(skew, "MODEL", {"hidden": 4, "layers": 3, "kernel": 3})
    monkeypatch.setattr(skew, "LARGE", {"hidden": 4, "layers": 2, "kernel": 3, "size": 4})
    monkeypatch.setattr(skew, "BATCHES", (1, 2))
    images = np.random.default_rng(0).integers(0, 4, (9, 5, 6), dtype=np.uint8)
    np.savez(tmp_path / "tiny.npz", train_images=images, test_images=images[:3], levels=4)
    argv = [
        "--runs",
        str(tmp_path / "runs"),
        "--data",
        str(tmp_path / "tiny.npz"),
        "--limit",
        "8",
        "--repeats",
        "1",
    ]
    parser = skew.argparse.ArgumentParser()
    skew.add_arguments(parser)
    return lambda *more: skew.run(parser.parse_args([*argv, *more]))


def test_it_trains_scores_and_times(tiny, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"\[measure\] .*ordinary-seed-0 holds no score.json: --train first"):
        tiny("--time")
    tiny("--train")
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert runs == ["ordinary-seed-0", "ordinary-seed-1", "skew-2-seed-0"]
    weights = [(tmp_path / "runs" / name / "model.safetensors").stat().st_mtime_ns for name in runs]
    tiny("--train", "--time", "--out", str(tmp_path / "skew.json"))
    again = [(tmp_path / "runs" / name / "model.safetensors").stat().st_mtime_ns for name in runs]
    assert weights == again  # what is there is not trained again
    ordinary, skewed, *large = json.loads((tmp_path / "skew.json").read_text())["rows"]
    assert ordinary["live_parameters"] == skewed["live_parameters"]
    assert (ordinary["skew"]["wavefront"], skewed["skew"]["wavefront"]) == (4, 2)
    assert (skewed["steps"]["raster"], skewed["steps"]["wavefront"]) == (30, 6 + 2 * 4)
    assert [row["steps"]["wavefront"] for row in large] == [4 + 3 * 3, 4 + 2 * 3]
    assert set(ordinary["scores_by_seed"]) == {"0", "1"}
    assert skewed["scores_by_seed"]["0"]["test_images"] == 3
    assert skewed["scores_by_seed"]["0"]["bits_per_dim"] > 0
    assert all(s > 0 for batch in skewed["seconds"].values() for s in batch.values())
    table = capsys.readouterr().out.partition("| 5x6, C4 L3 | live weights")[2]
    assert table.count("\n| ") == 3 + 4  # each has a head, a rule and two rows
    assert "trained on 8 images, scored on 3; one figure for each seed" in table


def test_it_refuses_what_does_not_compute_the_model():
    torch.manual_seed(0)
    model = models.GatedPixelCNN(hidden=4, layers=2, levels=4, skew=2).eval()
    samplers = {order: skew.compile_model(model, shape=(1, 4, 5), order=order) for order in skew.ORDERS}
    skew.verify(model, samplers)
    model.last.bias.data[0] += 3.0
    with pytest.raises(
        ValueError, match=r"\[verify\] the engine's log probabilities differ from the model's"
    ):
        skew.verify(model, samplers)
    samplers["raster"] = skew.compile_model(model, shape=(1, 4, 5), order="raster")
    with pytest.raises(ValueError, match=r"\[verify\] the orders draw different images"):
        skew.verify(model, samplers)
