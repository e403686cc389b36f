"""How long does `pixelfast.compile` take, beyond the time of torch.export, at first and for new weights?

export   torch.export.export and run_decompositions
beyond   the rest: the copy, three or four forward passes in PyTorch that check the graph, and the plan
again    another module of the same architecture with other weights
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import ExportedProgram

from pixelfast import capture, models, orders
from pixelfast._files import check_writable
from pixelfast._recent import Recent
from pixelfast.sampler import compile as compile_model

from . import harness

CASES: dict[str, tuple[Callable[[], models.AutoregressiveModel], tuple[int, int, int]]] = {
    "PixelCNN 28x28x1 C64 L12": (lambda: models.PixelCNN(hidden=64, layers=12), (1, 28, 28)),
    "GatedPixelCNN 32x32x3 C128 L15": (
        lambda: models.GatedPixelCNN(channels=3, hidden=128, layers=15),
        (3, 32, 32),
    ),
    "PixelCNN 32x32x1 C32 L60": (lambda: models.PixelCNN(hidden=32, layers=60), (1, 32, 32)),
    "GatedPixelCNN 32x32x1 C32 L60": (lambda: models.GatedPixelCNN(hidden=32, layers=60), (1, 32, 32)),
    "PixelCNN 256x256x1 C64 L12": (lambda: models.PixelCNN(hidden=64, layers=12), (1, 256, 256)),
    "PixelCNN++ CIFAR-10": (lambda: models.PixelCNNPlusPlus.preset("cifar10"), (3, 32, 32)),
}


@contextmanager
def _exporting() -> Iterator[list[float]]:
    """Collects the seconds that torch.export takes while this lasts."""
    spent: list[float] = []
    plain = torch.export.export, ExportedProgram.run_decompositions

    def timing(work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return work(*args, **options)
            finally:
                spent.append(time.perf_counter() - start)

        return timed

    torch.export.export, ExportedProgram.run_decompositions = map(timing, plain)  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        torch.export.export, ExportedProgram.run_decompositions = plain  # type: ignore[method-assign]


def _forget() -> None:
    """Empty what `compile` keeps for modules of the same architecture."""
    capture._EXPORTS = Recent(8)
    orders._ORDERS, orders._SCHEDULES = Recent(32), Recent(16)


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Compile two modules of one architecture, in turn. Returns a row of figures, medians in seconds."""
    make, shape = CASES[name]
    torch.manual_seed(0)
    first, second = make().eval(), make().eval()
    exports: list[float] = []

    def cold() -> float:
        _forget()
        with _exporting() as spent:
            total = harness.timed(lambda: compile_model(first, shape=shape))
        exports.append(sum(spent))
        return total

    def again() -> float:
        with _exporting() as spent:
            total = harness.timed(lambda: compile_model(second, shape=shape))
        if spent:
            raise ValueError(f"[compiling] {name} was exported again")
        return total

    def forward() -> float:
        images = torch.zeros(2, *shape, dtype=torch.int64)
        with torch.inference_mode():
            return harness.timed(lambda: first(images))

    seconds = harness.interleaved({"first": cold, "again": again, "forward": forward}, repeats)
    export = sorted(exports[1:] or exports)[len(exports[1:] or exports) // 2]
    parameters = sum(p.numel() for p in first.parameters())
    found = {"export": export, "beyond": seconds["first"] - export, **seconds}
    return {"model": name, "parameters": parameters, "seconds": found, "repeats": repeats}


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a table, the head first."""
    lines = [["model", "parameters", "torch.export", "beyond", "again", "a forward pass, batch 2"]]
    for row in result["rows"]:
        s = row["seconds"]
        figures = (f"{s[key]:.2f} s" for key in ("export", "beyond", "again", "forward"))
        lines.append([row["model"], f"{row['parameters'] / 1e6:.1f} M", *figures])
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks compiling`."""
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds, after one to warm up (3)")
    parser.add_argument("--quick", action="store_true", help="the smallest model, once")
    parser.add_argument("--out", help="where the JSON record goes")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print a table, and write the record."""
    if options.out is not None:
        check_writable(options.out)
    busy = harness.load()
    names = list(CASES)[:1] if options.quick else list(CASES)
    rows = [measure(name, 1 if options.quick else options.repeats) for name in names]
    result = harness.record("compiling", torch.get_num_threads(), busy, rows)
    print(harness.table(table(result)))
    if options.out is not None:
        harness.save(result, options.out)
    return result
