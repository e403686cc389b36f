"""How long does an image of each family of models take? `Sampler.sample` against the plain loop.

    plain   one forward pass of the whole network per sub-pixel, of each scale of a multi-scale model
    cached  for the transformer, a loop that keeps keys and values (kv_loop.py)

What is compared is verified first. The loops are timed in part, the plain one on a pass, the cached one on some
steps in the middle, and extrapolated to whole images. All use the same number of threads.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pixelfast import models, plain
from pixelfast._files import check_writable
from pixelfast.sampler import compile as compile_model

from . import harness, kv_loop
from .sampling import duration, verify

STEPS = 16  # of a cached loop, that are timed


@dataclass(frozen=True)
class Family:
    """A model of each family, with the weights that it is initialised with."""

    name: str
    size: int
    channels: int
    make: Callable[[], models.AutoregressiveModel]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    def model(self) -> models.AutoregressiveModel:
        torch.manual_seed(0)
        model = self.make()
        model.initialise(torch.randint(0, model.levels, (4, *self.shape)))
        return model.eval()


def _grey(name: str, make: Callable[..., models.AutoregressiveModel], **options: Any) -> Family:
    """A model of binary images of 28x28, the size of MNIST."""
    options = {"channels": 1, "levels": 2, "head": "bernoulli"} | options
    return Family(name, 28, 1, partial(make, **{k: v for k, v in options.items() if v is not None}))


def _colour(name: str, make: Callable[..., models.AutoregressiveModel], **options: Any) -> Family:
    """A model of images of 32x32 in three colours, the size of CIFAR-10."""
    options = {"channels": 3, "levels": 256} | options
    return Family(name, 32, options["channels"], partial(make, **options))


FAMILIES = (
    _grey("PixelCNN C64 L12", models.PixelCNN, hidden=64, layers=12),
    _grey("GatedPixelCNN C64 L12", models.GatedPixelCNN, hidden=64, layers=12),
    _grey("PixelCNN++ C64 B2", models.PixelCNNPlusPlus, hidden=64, blocks=2, head=None),
    _grey("LSTM2d h64 L2", models.LSTM2d, hidden=64, layers=2),
    _grey("RowLSTM h64 L4", models.RowLSTM, hidden=64, layers=4),
    _grey("DiagonalBiLSTM h16 L7", models.DiagonalBiLSTM, hidden=16, layers=7),
    _grey("MultiScale of RowLSTM h32 L4", models.MultiScale, model="RowLSTM", hidden=32, layers=4),
    _grey("PixelSNAIL C64 B2 L4", models.PixelSNAIL, hidden=64, blocks=2, layers=4),
    _grey("PixelTransformer C128 L4", models.PixelTransformer, hidden=128, layers=4, height=28, width=28),
    _colour("PixelCNN C64 L12", models.PixelCNN, hidden=64, layers=12),
    _colour("GatedPixelCNN C64 L12", models.GatedPixelCNN, hidden=64, layers=12),
    _colour("PixelCNN++ C64 B2", models.PixelCNNPlusPlus, hidden=64, blocks=2),
    _colour("LSTM2d h64 L2", models.LSTM2d, hidden=64, layers=2),
    _colour("RowLSTM h64 L4", models.RowLSTM, hidden=64, layers=4),
    _colour("DiagonalBiLSTM h32 L4", models.DiagonalBiLSTM, hidden=32, layers=4),
    _colour("MultiScale of RowLSTM h32 L4", models.MultiScale, model="RowLSTM", hidden=32, layers=4),
    _colour("PixelSNAIL C64 B2 L4", models.PixelSNAIL, hidden=64, blocks=2, layers=4),
    _colour(
        "PixelTransformer C128 L4, clusters", models.PixelTransformer, hidden=128, layers=4, height=32, width=32,
        channels=1, levels=512,
    ),
)  # fmt: skip
BATCHES = (1, 16)
NAMES = {"plain": "plain loop", "cached": "cached loop"}


class _Given(nn.Module):
    """A stage of a multi-scale model, given images of half the size."""

    def __init__(self, stage: models.multi_scale.Stage, small: Tensor) -> None:
        super().__init__()
        self.stage, self.small, self.head = stage, small, stage.head

    def forward(self, images: Tensor) -> Tensor:
        return self.stage(images, self.small)


def plain_seconds(model: models.AutoregressiveModel, shape: Sequence[int]) -> float:
    """Return what a batch (N, C, H, W) takes by the plain loop, extrapolated from a pass of each scale."""
    if not isinstance(model, models.MultiScale):
        return plain.seconds(model, (shape[0], shape[1], shape[2], shape[3]), passes=1)[1]
    small, *larger = (x.contiguous() for x in model.pyramid(torch.zeros(*shape, dtype=torch.int64)))
    total = plain.seconds(model.first, tuple(small.shape), passes=1)[1]
    for stage, images in zip(model.stages, larger, strict=True):
        one = plain.seconds(_Given(stage, small), tuple(images.shape), passes=1)[0]
        total += one * (images[0].numel() - small[0].numel())
        small = images
    return total


def cached_seconds(model: models.PixelTransformer, n: int) -> float:
    """Return what a batch takes by the loop that keeps keys and values, extrapolated from its middle."""
    state = kv_loop.Cached(model, n)
    length = len(model.positions)
    tokens = torch.zeros(n, length, dtype=torch.int64)
    steps = range(max(length // 2 - STEPS // 2, 1), min(length // 2 + STEPS // 2, length))
    kv_loop.draw(state, tokens, steps)
    return harness.timed(lambda: kv_loop.draw(state, tokens, steps)) * length / len(steps)


def measure(family: Family, batches: Sequence[int], *, threads: int, repeats: int) -> list[dict[str, Any]]:
    """Time one model at some batch sizes. Returns a row of figures for each."""
    model = family.model()
    sampler = compile_model(model, shape=family.shape)
    verify(model, sampler)
    rows = []
    for n in batches:
        contestants: dict[str, Callable[[], float]] = {
            "pixelfast": partial(harness.timed, partial(sampler.sample, n, threads=threads)),
            "plain": partial(plain_seconds, model, (n, *family.shape)),
        }
        if isinstance(model, models.PixelTransformer):
            contestants["cached"] = partial(cached_seconds, model, n)
        seconds = harness.interleaved(contestants, repeats)
        rows.append(
            {
                "model": family.name,
                "shape": family.shape,
                "parameters": sum(p.numel() for p in model.parameters()),
                "batch": n,
                "order": sampler.order,
                "steps": sampler.steps,
                "multiply_adds_per_image": sampler.multiply_adds,
                "seconds_per_image": {name: value / n for name, value in seconds.items()},
                "extrapolated": {"plain": "from 1 pass per repeat", "cached": f"from {STEPS} steps"},
                "repeats": repeats,
            }
        )
    return rows


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a table, the head first."""
    lines = [["model", "image", "parameters", "batch", "steps", "pixelfast", "plain loop*", "vs plain",
              "cached loop*", "vs cached", "of peak"]]  # fmt: skip
    for row in result["rows"]:
        seconds = row["seconds_per_image"]
        own = seconds["pixelfast"]
        cached = seconds.get("cached")
        rate = row["multiply_adds_per_image"] / own
        lines.append(
            [
                row["model"],
                "x".join(map(str, (*row["shape"][1:], row["shape"][0]))),
                f"{row['parameters']:,}",
                str(row["batch"]),
                f"{row['steps']:,}",
                duration(own),
                duration(seconds["plain"]),
                f"{seconds['plain'] / own:,.0f}x",
                "" if cached is None else duration(cached),
                "" if cached is None else f"{cached / own:.1f}x",
                f"{rate / result['machine']['peak_multiply_adds_per_second']:.0%}",
            ]
        )
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks families`."""
    parser.add_argument("--quick", action="store_true", help="the grey models, batch 1, once")
    parser.add_argument("--only", default="", metavar="TEXT", help="models whose name has this in it")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="of every contestant (all cores)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds, after one to warm up (3)")
    parser.add_argument("--out", help="where the JSON record goes")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print a table, and write the record."""
    if options.out is not None:
        check_writable(options.out)
    busy = harness.load()
    torch.set_num_threads(options.threads)
    rows = []
    for family in FAMILIES:
        if options.only not in family.name or (options.quick and family.size != 28):
            continue
        batches, repeats = ((1,), 1) if options.quick else (BATCHES, options.repeats)
        for row in measure(family, batches, threads=options.threads, repeats=repeats):
            figures = ", ".join(
                f"{name} {duration(value)}" for name, value in row["seconds_per_image"].items()
            )
            print(f"{row['model']} {family.size}x{family.size}, batch {row['batch']}: {figures}", flush=True)
            rows.append(row)
    result = harness.record("families", options.threads, busy, rows)
    print(harness.table(table(result)))
    print(f"* per image; extrapolated from timed parts. Sub-pixels: {math.prod(FAMILIES[0].shape)} of 28x28.")
    if options.out is not None:
        harness.save(result, options.out)
    return result
