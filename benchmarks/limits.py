"""How near does sampling come to the limits of the machine? Time over floor (floor.py), and where the rest goes.

speed     seconds per batch in one thread, over the floor; how much faster all threads are
shares    at batch 16, the part of the time that is not multiply-adds; at batch 1, the bookkeeping per pixel and op
orders    what `auto` chose, against every order that could be forced
bf16      the bf16 mode against fp32
memory    bytes of a run besides the weights, over what the rings of the images at work need
sizes     seconds per pixel from 28x28 to 256x256
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import pixelfast as pf
from pixelfast import _cpu, models
from pixelfast import readiness as R
from pixelfast._files import check_writable
from pixelfast.orders import schedule_in
from pixelfast.sampler import compile as compile_model

from . import floor, harness
from .sampling import Case, duration

CASES = (
    Case(models.PixelCNN, 1, 28, 32, 12),
    Case(models.PixelCNN, 1, 28, 64, 12),
    Case(models.PixelCNN, 1, 28, 128, 12),
    Case(models.PixelCNN, 1, 28, 256, 8),
    Case(models.PixelCNN, 3, 32, 128, 15),
    Case(models.GatedPixelCNN, 1, 28, 64, 12),
    Case(models.GatedPixelCNN, 1, 28, 128, 12),
    Case(models.GatedPixelCNN, 3, 32, 128, 15),
)
BATCHES = (1, 4, 16, 64)
SMALL = Case(models.PixelCNN, 1, 16, 32, 4)  # shows what is not arithmetic
SIZES = tuple(Case(models.PixelCNN, 1, size, 64, 12) for size in (28, 64, 128, 256))


def timer(sampler: pf.Sampler, n: int, threads: int = 1) -> Callable[[], float]:
    """What times one batch."""
    return lambda: harness.timed(lambda: sampler.sample(n, threads=threads))


def speed(sampler: pf.Sampler, peaks: floor.Peaks, n: int, threads: int, repeats: int) -> dict[str, Any]:
    """One thread against the floor, and all threads against one."""
    work = floor.Work.of(sampler.schedule)
    contestants = {"rate": floor.rate, "one": timer(sampler, n), "all": timer(sampler, n, threads)}
    found = harness.interleaved(contestants, repeats)
    least = floor.seconds(work, floor.at(peaks, found["rate"]), n)
    return {
        "batch": n,
        "multiply_adds_per_second": found["rate"],
        "seconds": found["one"],
        "floor": least,
        "over_floor": found["one"] / least["floor"],
        "of_peak": least["multiply_adds"] / found["one"],
        "threads": threads,
        "speedup": found["one"] / found["all"],
    }


def shares(sampler: pf.Sampler, n: int, repeats: int) -> dict[str, Any]:
    """The median profile, by the part that products take, of a batch."""
    profiles = [sampler.profile(n, quiet=True, threads=1) for _ in range(repeats)]
    middle = sorted(profiles, key=lambda p: p.shares["product"])[len(profiles) // 2]
    launched = sum(row.elements for row in sampler.explain().rows)
    own = (middle.shares["gather"] + middle.shares["walk"]) * middle.thread_seconds
    return {"batch": n, "shares": middle.shares, "bookkeeping_ns": own / (n * launched) * 1e9}


def orders(sampler: pf.Sampler, n: int, repeats: int) -> dict[str, Any]:
    """The skew that `auto` chose, against that of raster order and others from the least on."""
    width, plan = sampler.shape[2], sampler._plan
    least, chosen = pf.causality.find_skew(plan), int(sampler.schedule.order.skew or width)
    forced = {least, least + 1, least + 2, least + 4, least + 8, width} & set(range(1, width + 1))
    found = harness.interleaved(
        {
            str(skew): timer(sampler.rescheduled(schedule_in(plan, R.wavefront(sampler.shape, skew))), n)
            for skew in sorted(forced | {chosen})
        },
        repeats,
    )
    best = min(found, key=lambda name: found[name])
    return {
        "batch": n,
        "auto": str(chosen),
        "seconds": found,
        "best": best,
        "over_best": found[str(chosen)] / found[best],
    }


def memory(sampler: pf.Sampler, n: int) -> dict[str, Any]:
    """Bytes of a fresh sampler after a run, besides the weights."""
    fresh = sampler.rescheduled(sampler.schedule)
    fresh.sample(n, threads=1, chunk=n)
    rings = fresh.explain().buffer_nbytes * n
    working = fresh._runtime.working_nbytes  # type: ignore[attr-defined]
    return {"batch": n, "working_nbytes": working, "ring_nbytes": rings, "over_rings": working / rings}


def bf16(
    case: Case, model: models.AutoregressiveModel, sampler: pf.Sampler, n: int, repeats: int
) -> dict[str, Any]:
    """The bf16 mode against fp32."""
    half = compile_model(model, shape=case.shape, precision="bf16")
    found = harness.interleaved({"fp32": timer(sampler, n), "bf16": timer(half, n)}, repeats)
    return {"batch": n, "seconds": found, "speedup": found["fp32"] / found["bf16"]}


def measure(case: Case, batches: Sequence[int], threads: int, repeats: int) -> dict[str, Any]:
    """All that is asked of one model."""
    model = case.model()
    sampler = compile_model(model, shape=case.shape)
    peaks = floor.measure()
    row: dict[str, Any] = {
        "model": case.name,
        "order": f"{sampler.order}, skew {sampler.schedule.order.skew}",
        "peaks": peaks.as_dict(),
        "speed": [speed(sampler, peaks, n, threads, repeats) for n in batches],
        "shares": [shares(sampler, n, repeats) for n in batches if n in (1, 16)],
        "orders": [orders(sampler, n, repeats) for n in batches if n in (1, 16)],
        "memory": [memory(sampler, n) for n in batches if n in (1, 16)],
    }
    if _cpu.bf16_kernels():
        row["bf16"] = [bf16(case, model, sampler, n, repeats) for n in batches if n in (1, 16)]
    return row


def sizes(cases: Sequence[Case], repeats: int) -> list[dict[str, Any]]:
    """Seconds per pixel, one image at a time."""
    found = []
    for case in cases:
        sampler = compile_model(case.model(), shape=case.shape)
        median = harness.interleaved({"one": timer(sampler, 1)}, repeats)["one"]
        found.append({"model": case.name, "seconds": median, "ns_per_pixel": median / case.size**2 * 1e9})
    return found


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a table, the head first."""
    head = ["model", "batch", "per image", "floor", "over floor", "of peak", "threads", "faster"]
    lines = [head]
    for row in result["rows"]:
        for s in row["speed"]:
            lines.append(
                [
                    row["model"],
                    str(s["batch"]),
                    duration(s["seconds"] / s["batch"]),
                    duration(s["floor"]["floor"] / s["batch"]),
                    f"{s['over_floor']:.2f}",
                    f"{s['of_peak']:.0%}",
                    str(s["threads"]),
                    f"{s['speedup']:.2f}x",
                ]
            )
    return lines


def parts_table(result: Mapping[str, Any]) -> list[list[str]]:
    """What is not speed: shares, bookkeeping, orders, memory and bf16."""
    lines = [
        [
            "model",
            "batch",
            "not products",
            "ns per op and pixel",
            "auto over best",
            "memory over rings",
            "bf16",
        ]
    ]
    for row in result["rows"]:
        halves = row.get("bf16", [None] * len(row["shares"]))
        for s, o, m, b in zip(row["shares"], row["orders"], row["memory"], halves, strict=True):
            lines.append(
                [
                    row["model"],
                    str(s["batch"]),
                    f"{1 - s['shares']['product']:.1%}",
                    f"{s['bookkeeping_ns']:.0f}",
                    f"{o['over_best']:.2f}",
                    f"{m['over_rings']:.2f}",
                    f"{b['speedup']:.2f}x" if b else "",
                ]
            )
    return lines


def sizes_table(result: Mapping[str, Any]) -> list[list[str]]:
    """Seconds and nanoseconds per pixel by size."""
    rows = [[r["model"], duration(r["seconds"]), f"{r['ns_per_pixel']:,.0f}"] for r in result["sizes"]]
    return [["model", "an image", "ns per pixel"], *rows]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks limits`."""
    parser.add_argument("--quick", action="store_true", help="one tiny model, batch 1, once")
    parser.add_argument("--only", default="", metavar="TEXT", help="models whose name has this in it")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="what all threads are (all cores)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, after one to warm up (5)")
    parser.add_argument("--out", help="where the JSON record goes")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print tables, and write the record."""
    if options.out is not None:
        check_writable(options.out)
    busy = harness.load()
    torch.set_num_threads(1)
    cases: tuple[Case, ...] = (SMALL,) if options.quick else (SMALL, *CASES)
    batches, repeats = ((1,), 1) if options.quick else (BATCHES, options.repeats)
    rows = []
    for case in cases:
        if options.only in case.name:
            rows.append(measure(case, batches, options.threads, repeats))
            print(harness.table(table({"rows": rows[-1:]})), flush=True)
    result = harness.record("limits", options.threads, busy, rows)
    result["sizes"] = sizes(SIZES[:1] if options.quick else SIZES, repeats)
    for lines in (table(result), parts_table(result), sizes_table(result)):
        print("\n" + harness.table(lines))
    print("\n" + "; ".join(sorted({floor.describe(row["peaks"]) for row in rows})))
    if options.out is not None:
        harness.save(result, options.out)
    return result
