"""How long does an image take? `Sampler.sample` against two ways to sample in PyTorch.

    plain   one forward pass of the whole network per sub-pixel (pixelfast/plain.py)
    compiled  the same of a module that torch.compile has compiled
    cached  the loop that a careful user would write by hand: every feature computed once (cached_loop.py; there is
            none for PixelCNN++)

What is compared is verified first. The loops are timed in part, the plain ones on a few passes, the cached
one on a few rows, and extrapolated to whole images. All use the same number of threads. The floor is what one thread's
multiply-adds and weights would take (floor.py), over the number of threads.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pixelfast import models, plain
from pixelfast._files import check_writable
from pixelfast.sampler import Sampler
from pixelfast.sampler import compile as compile_model

from . import cached_loop, floor, harness, kv_loop


@dataclass(frozen=True)
class Case:
    """A model to sample from, with the weights it is initialized with."""

    kind: type[models.AutoregressiveModel]
    channels: int
    size: int
    hidden: int = 0
    layers: int = 0
    levels: int = 256
    preset: str | None = None

    @property
    def name(self) -> str:
        if self.preset is not None:
            return f"{self.kind.__name__} {self.preset} {self.size}x{self.size}x{self.channels}"
        return f"{self.kind.__name__} {self.size}x{self.size}x{self.channels} C{self.hidden} L{self.layers}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    def model(self) -> models.AutoregressiveModel:
        torch.manual_seed(0)
        if issubclass(self.kind, models.PixelCNNPlusPlus):
            preset = self.kind.preset(str(self.preset))
            preset.initialise(torch.randint(0, 256, (4, *self.shape)))  # without it, activations overflow
            return preset.eval()
        assert issubclass(self.kind, models.PixelCNN | models.GatedPixelCNN)
        model = self.kind(channels=self.channels, levels=self.levels, hidden=self.hidden, layers=self.layers)
        return model.eval()


CASES = (
    Case(models.PixelCNN, 1, 28, 64, 12),
    Case(models.PixelCNN, 3, 32, 128, 15),
    Case(models.GatedPixelCNN, 1, 28, 64, 12),
    Case(models.GatedPixelCNN, 3, 32, 128, 15),
    Case(models.PixelCNNPlusPlus, 3, 32, preset="cifar10"),
)
BATCHES = (1, 16, 64)
NAMES = {"cached": "cached loop", "plain": "plain loop", "compiled": "compiled loop"}
OTHERS = tuple(NAMES)


def verify(model: models.AutoregressiveModel, sampler: Sampler) -> None:
    """Check, on two samples, that what is timed computes what it should. Raises ValueError if not."""
    samples = sampler.sample(2, seed=1)
    images = samples.images
    if not torch.equal(sampler.log_prob(images), samples.log_prob):
        raise ValueError("[verify] sampling and scoring differ")
    with torch.inference_mode():
        if not torch.allclose(samples.log_prob, model.log_prob(images), rtol=1e-4, atol=1e-1):
            raise ValueError("[verify] the engine's log probabilities differ from the model's")
        loop = next((loop for loop in (cached_loop, kv_loop) if loop.knows(model)), None)
        if loop is None:
            return
        expected = model.network(model.scale(images), None)
    if not torch.allclose(loop.outputs(model, images), expected, rtol=1e-3, atol=1e-3):
        raise ValueError("[verify] the cached loop's outputs differ from the model's")


def measure(
    case: Case, batches: Sequence[int], *, threads: int, repeats: int, rows: int, compiled: bool
) -> list[dict[str, Any]]:
    """Time one model at some batch sizes. Returns a row of figures for each."""
    model = case.model()
    peaks = floor.measure()
    sampler = compile_model(model, shape=case.shape)
    verify(model, sampler)
    rows = min(rows, case.size)
    results = []
    for n in batches:

        def engine(n: int = n) -> float:
            return harness.timed(lambda: sampler.sample(n, seed=0, threads=threads))

        def cached(n: int = n) -> float:
            start = time.perf_counter()
            state = cached_loop.cached(model, n, case.size, case.size)
            setup = time.perf_counter() - start
            images = torch.zeros(n, *case.shape, dtype=torch.int64)
            first = (case.size - rows + 1) // 2
            part = harness.timed(
                lambda: cached_loop.draw_rows(model, state, images, range(first, first + rows))
            )
            return setup + part * case.size / rows

        def loop(module: Any, n: int = n) -> float:
            return plain.seconds(module, (n, *case.shape), passes=1)[1]

        contestants = {"pixelfast": engine, "plain": partial(loop, model)}
        if cached_loop.knows(model):
            contestants["cached"] = cached
        if compiled:
            torch.compiler.reset()  # which gives up compiling after so many shapes
            contestants["compiled"] = partial(loop, torch.compile(model, dynamic=False))
        seconds = harness.interleaved(contestants, repeats)
        results.append(
            {
                "model": case.name,
                "batch": n,
                "order": str(sampler.order),
                "steps": sampler.steps,
                "sub_pixels": math.prod(case.shape),
                "multiply_adds_per_image": sampler.multiply_adds,
                "peaks": peaks.as_dict(),
                "floor_per_image": floor.seconds(floor.Work.of(sampler.schedule), peaks, n)["floor"]
                / n
                / threads,
                "seconds_per_image": {name: value / n for name, value in seconds.items()},
                "extrapolated": {
                    "cached": f"from {rows} of {case.size} rows",
                    "plain": "from 1 pass per repeat",
                },
                "repeats": repeats,
            }
        )
    return results


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a table, the head first."""
    head = ["model", "batch", "pixelfast", "over floor", *(f"{NAMES[name]}*" for name in OTHERS)]
    lines = [[*head, *(f"vs {name}" for name in OTHERS), "GMAC/s", "of peak"]]
    for row in result["rows"]:
        seconds = row["seconds_per_image"]
        rate = row["multiply_adds_per_image"] / seconds["pixelfast"]
        lines.append(
            [
                row["model"],
                str(row["batch"]),
                duration(seconds["pixelfast"]),
                f"{seconds['pixelfast'] / row['floor_per_image']:.2f}",
                *(duration(seconds[name]) if name in seconds else "" for name in OTHERS),
                *(
                    f"{seconds[name] / seconds['pixelfast']:,.0f}x" if name in seconds else ""
                    for name in OTHERS
                ),
                f"{rate / 1e9:.1f}",
                f"{rate / result['machine']['peak_multiply_adds_per_second']:.0%}",
            ]
        )
    return lines


def duration(seconds: float) -> str:
    """Return seconds as people read them: "12 ms", "1.8 s", "2.4 min"."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:,.3g} min"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks sampling`."""
    parser.add_argument(
        "--quick", action="store_true", help="the two small models, batches 1 and 16, once each"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="models whose name has this in it")
    parser.add_argument("--batches", type=int, nargs="+", metavar="N", help="batch sizes (1 16 64)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="of every contestant (all cores)"
    )
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="time the loop of a compiled module, too, which takes minutes to compile",
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds, after one to warm up (3)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: what `gpu` has of it (cpu)"
    )
    parser.add_argument("--out", help="where the JSON record goes")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print a table, and write the record."""
    if options.device == "cuda":
        from . import gpu

        return gpu.run_part(options, networks=True, convolutions=False)
    if options.out is not None:
        check_writable(options.out)
    busy = harness.load()
    torch.set_num_threads(options.threads)
    cases = [case for case in CASES if not options.quick or case.channels == 1]
    cases = [case for case in cases if options.only in case.name]
    batches = options.batches or (BATCHES[:2] if options.quick else BATCHES)
    repeats, part = (1, 1) if options.quick else (options.repeats, 2)
    rows = []
    for case in cases:
        compiled = options.compiled and not options.quick
        found = measure(case, batches, threads=options.threads, repeats=repeats, rows=part, compiled=compiled)
        for row in found:
            figures = ", ".join(
                f"{name} {duration(value)}" for name, value in row["seconds_per_image"].items()
            )
            print(f"{row['model']}, batch {row['batch']}: {figures} per image", flush=True)
        rows += found
    result = harness.record("sampling", options.threads, busy, rows)
    host = result["machine"]
    peak = f"fp32 peak {host['peak_multiply_adds_per_second'] / 1e9:.0f} GMAC/s"
    print(f"\n{host['cpu']}, {host['isa']}, {host['threads']} threads, {peak}")
    print(harness.table(table(result)))
    print("* per image; extrapolated from timed parts")
    if options.out is not None:
        harness.save(result, options.out)
    return result
