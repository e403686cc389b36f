"""What every benchmark needs: interleaved repeats and their medians, the machine, a JSON record, a table."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pixelfast
from pixelfast import _cpu
from pixelfast._files import replacing
from pixelfast._table import aligned
from pixelfast.doctor import processor


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(contestants: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Return the median of each contestant's figure, taken in turn, so that a busy spell hits all of them.

    The first round warms up and is dropped, unless it is the only one.
    """
    if repeats < 1:
        raise ValueError(f"[interleaved] repeats must be at least 1, got {repeats}")
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats + 1 if repeats > 1 else 1):
        for name, measure in contestants.items():
            figures[name].append(measure())
    return {name: statistics.median(found[1:] or found) for name, found in figures.items()}


def load() -> float:
    """Return how many other processes want a core now, and say so if it is enough to spoil a measurement."""
    found = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if found > 0.5:
        print(f"warning: the machine is busy (load {found:.1f}); the loops in PyTorch suffer most from that")
    return round(found, 2)


def machine(threads: int) -> dict[str, Any]:
    """Describe the machine, and measure its fp32 peak with the runtime's own instruction set and threads."""
    isa = _cpu.default_isa()
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "isa": isa,
        "threads": threads,
        "peak_multiply_adds_per_second": _cpu.peak(isa, threads, 0.5),
    }


def versions() -> dict[str, str]:
    """Return the versions of all that takes part."""
    return {
        "pixelfast": pixelfast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def commit() -> str | None:
    """Return the commit of the checkout, with a + if it has changes, or None outside of one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def record(question: str, threads: int, busy: float, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the JSON record of a run. `busy` is what `load` gave before it."""
    return {
        "question": question,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "load_before": busy,
        "machine": machine(threads),
        "versions": versions(),
        "rows": list(rows),
    }


def save(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a record, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as an aligned table; the first is the head, and every column but the first is numbers."""
    head, *lines = aligned(rows)
    rule = "  ".join("-" * max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join([head, rule, *lines])
