"""`pixelfast demo`: a grid of pictures from the model that comes with the package, and what it cost."""

from __future__ import annotations

import os
import time
from importlib import resources

import torch

from . import models, plain, viz
from ._files import check_writable
from .sampler import compile as compile_model

_ROWS = (0, 1, 2, 3, 5, 7, 8, 9)  # eight of the ten classes; left out are two that look much like others
_COLUMNS = 8


def run(out: str | os.PathLike[str], *, seed: int = 0, threads: int | None = None) -> None:
    """Draw an 8x8 grid, one class per row, write it to `out`, and print what was done and how fast.

    Raises OSError, before the work, if `out` cannot be written.
    """
    check_writable(out)
    with resources.as_file(resources.files(__package__) / "assets" / "fashion_mnist") as folder:
        model = models.load(folder)
    assert model.shape is not None
    n = len(_ROWS) * _COLUMNS
    labels = torch.tensor(_ROWS).repeat_interleave(_COLUMNS)

    start = time.perf_counter()
    sampler = compile_model(model, shape=model.shape)
    planned = time.perf_counter() - start
    print(f"{type(model).__name__} for Fashion-MNIST, planned in {planned:.1f} s")

    start = time.perf_counter()
    samples = sampler.sample(n, labels=labels, seed=seed, threads=threads, progress=True)
    drawn = time.perf_counter() - start
    titles = [model.class_names[label] for label in _ROWS]
    viz.save_grid(samples.images, out, columns=_COLUMNS, titles=titles, levels=model.levels, scale=3)
    _, height, width = model.shape
    print(
        f"{n} images of {height}x{width} in {drawn:.2f} s, {n / drawn:.1f} images/s: "
        f"{sampler.steps} steps ({sampler.order} order) for {height * width} pixels"
    )
    print(f"picture: {os.fspath(out)}")

    if threads is not None:
        torch.set_num_threads(threads)
    passes = 3
    step, loop = plain.seconds(model, (n, *model.shape), labels, passes)
    print(
        f"the plain PyTorch loop, one forward pass per pixel, would take {loop:.0f} s on this machine, "
        f"{loop / drawn:.0f} times as long (extrapolated from the fastest of {passes} passes, {step:.2f} s)"
    )
