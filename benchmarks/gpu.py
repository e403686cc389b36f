"""How long does a GPU take? The cuda backend against the cpu one, whose bits it must give, and the plain loop there."""

from __future__ import annotations

import argparse
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pixelfast import Sampler, models, plain
from pixelfast import runtime as runtimes
from pixelfast._files import check_writable
from pixelfast.sampler import compile as compile_model

from . import harness
from .sampling import Case, duration

# A network, and batch sizes.
CASES = (
    (Case(models.PixelCNN, 1, 28, 64, 12), (1, 64)),
    (Case(models.GatedPixelCNN, 1, 28, 64, 12), (1, 64)),
    (Case(models.GatedPixelCNN, 1, 32, 128, 15), (16, 256)),
    (Case(models.GatedPixelCNN, 3, 32, 128, 15), (16,)),
)
QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"


def gpu() -> dict[str, str]:
    """The first GPU, its driver and clocks, as nvidia-smi tells; empty where there is none."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(QUERY.split(","), out.splitlines()[0].split(", "), strict=True))


def verify(device: Sampler, cpu: Sampler, n: int = 3) -> None:
    """Check that two backends draw the same images, with the same log-probabilities. Raises ValueError if not."""
    want, got = cpu.sample(n, seed=1), device.sample(n, seed=1)
    if not (torch.equal(got.images, want.images) and torch.equal(got.log_prob, want.log_prob)):
        raise ValueError(f"[verify] {device.target.backend} and cpu draw different images")


def measure(
    case: Case, batches: Sequence[int], *, backend: str, teams: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """Time one network at some batch sizes, for several numbers of blocks that share images."""
    model = case.model()
    cpu = compile_model(model, shape=case.shape)
    device = compile_model(model, shape=case.shape, backend=backend)
    verify(device, cpu)
    rows = []
    for n in batches:
        contestants = {
            f"{team} blocks": lambda n=n, team=team: harness.timed(
                lambda: device.sample(n, seed=0, team=team)
            )
            for team in teams
        }
        contestants["cpu"] = lambda n=n: harness.timed(lambda: cpu.sample(n, seed=0))
        seconds = harness.interleaved(contestants, repeats)
        row = {
            "model": case.name,
            "batch": n,
            "order": f"{device.order}, skew {device.schedule.order.skew}",
            "steps": device.steps,
            "launches": sum(1 for _ in device.schedule.launches()),
            "multiply_adds_per_image": device.multiply_adds,
            "seconds": seconds,
        }
        if torch.cuda.is_available():
            loop = [plain.seconds(model.cuda(), (n, *case.shape), passes=3)[1] for _ in range(repeats)]
            row["plain_loop_extrapolated"] = statistics.median(loop)
            model.cpu()
        rows.append(row)
        print(harness.table(table({"rows": rows[-1:]})), flush=True)
    return rows


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a table, the head first."""
    lines = [["model", "batch", "launches", "best", "of", "cpu", "plain loop*", "vs plain"]]
    for row in result["rows"]:
        seconds = {name: value for name, value in row["seconds"].items() if name != "cpu"}
        best = min(seconds, key=lambda name: seconds[name])
        loop = row.get("plain_loop_extrapolated")
        lines.append(
            [
                row["model"],
                str(row["batch"]),
                f"{row['launches']:,}",
                duration(seconds[best]),
                best,
                duration(row["seconds"]["cpu"]),
                duration(loop) if loop else "",
                f"{loop / seconds[best]:,.0f}x" if loop else "",
            ]
        )
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks gpu`."""
    parser.add_argument("--only", default="", metavar="TEXT", help="models whose name has this in it")
    parser.add_argument("--backend", default="cuda", help='"cuda", or "emulated", whose times mean nothing')
    parser.add_argument(
        "--teams", type=int, nargs="+", default=(1, 2, 4, 8), metavar="N", help="blocks that share images"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds, after one to warm up (3)")
    parser.add_argument("--out", help="where the JSON record goes")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print a table, and write the record. Raises ValueError where there is no GPU."""
    if options.out is not None:
        check_writable(options.out)
    if options.backend == "cuda" and (missing := runtimes.no_cuda()):
        raise ValueError(f"[gpu] not measured: {missing}")
    busy = harness.load()
    rows = []
    for case, batches in CASES:
        if options.only in case.name:
            rows += measure(
                case, batches, backend=options.backend, teams=options.teams, repeats=options.repeats
            )
    result = harness.record("gpu", 1, busy, rows)
    result["gpu"] = gpu()
    result["backend"] = options.backend
    print(harness.table(table(result)))
    print("* extrapolated from three forward passes")
    if options.out is not None:
        harness.save(result, options.out)
    return result
