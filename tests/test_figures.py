"""The figures of docs/cuda.md: the script runs, and what it counts is what the program has."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def figures(monkeypatch):
    """The script, of small models."""
    path = Path(__file__).parents[1] / "docs/figures/cuda.py"
    spec = importlib.util.spec_from_file_location("cuda_figures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SIZE", 4)
    monkeypatch.setattr(module, "LAYERS", 1)
    monkeypatch.setattr(module, "MODELS", {"PixelCNN": ("PixelCNN", {"hidden": 16, "layers": 1})})
    return module


def test_all_are_drawn(figures, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["cuda", "--out", str(tmp_path)])
    figures.main()
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {f"cuda_{name}.png" for name in figures.FIGURES}
    for name in drawn:
        with Image.open(tmp_path / name) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert (pixels != 255).any()
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (edge == 255).all(), f"{name} is cut off"
        assert f"figures/{name}" in (Path(figures.__file__).parents[1] / "cuda.md").read_text()


def test_launches_are_those_of_the_program(figures):
    sampler = figures.compiled("GatedPixelCNN", {"hidden": 64, "layers": 2})
    found = list(figures.steps(sampler))
    assert len(found) == sampler.steps
    launches = [launch for step in found for launch in step]
    assert len(launches) == len(sampler._runtime.launches(False))
    assert sum(launch.multiply_adds for launch in launches) == sampler.multiply_adds
    assert 0 < sum(launch.early for launch in launches) < len(launches)
    assert 0 < sum(launch.waits for launch in launches) < len(launches)
