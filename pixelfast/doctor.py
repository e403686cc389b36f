"""`pixelfast doctor`: what is installed, on which machine, and whether all runtimes give the same bits."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import torch

from . import __version__, _cpu, models, runtime
from .runtime import no_cuda
from .sampler import compile as compile_model

_VARIABLES = ("PIXELFAST_ISA", "PIXELFAST_BF16", "PIXELFAST_THREADS")


def run() -> None:
    """Print versions and the machine, then check every runtime of this machine on a tiny model.

    Raises RuntimeError if two of them differ.
    """
    isas = _cpu.isas()
    variables = [f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ]
    rows = {
        "pixelfast": f"{__version__}, {Path(__file__).parent}",
        "python": f"{platform.python_version()}, {platform.platform()}",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "threads": f"{_cpu.default_threads()} by default",
        "isa": f"{_cpu.default_isa()}, of {', '.join(isas)}",
        "bf16": _cpu.bf16_kernels() or "no: it needs AVX-512 with BF16",
        "cuda": no_cuda() or ", ".join(device["name"] for device in runtime._cuda.devices()),
        "peak": f"{_cpu.peak(_cpu.default_isa(), 1, 0.1) / 1e9:.0f} G multiply-adds/s in one thread",
        "variables": ", ".join(variables) or "none",
    }
    for name, value in rows.items():
        print(f"{name:10} {value}")
    count = check(isas)
    print(f"{'check':10} {count} ways to draw the same images gave the same bits")


def check(isas: list[str]) -> int:
    """Draw images of a tiny model with every runtime, order and some threads; return how many ways that were.

    Raises RuntimeError if two of them differ.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.GatedPixelCNN(channels=3, levels=4, hidden=6, layers=2, kernel=3)
    runtimes: list[tuple[str, str | None]] = [("reference", None), *(("cpu", isa) for isa in isas)]
    runtimes += [("emulated", None)] + ([] if no_cuda() else [("cuda", None)])
    expected, first, count = None, "", 0
    for order in ("raster", "wavefront"):
        for backend, isa in runtimes:
            sampler = compile_model(model, shape=(3, 4, 5), order=order, backend=backend, isa=isa)
            for threads in (1, 2) if backend == "cpu" else (None,):
                name = f"{isa or backend}, {order} order, {threads or 1} threads"
                samples = sampler.sample(3, seed=7, threads=threads).cpu()
                found = samples.images.numpy().tobytes() + samples.log_prob.numpy().tobytes()
                if expected is None:
                    expected, first = found, name
                if found != expected:
                    raise RuntimeError(
                        f"[doctor] these gave different bits: {first}; {name}. Please report it"
                    )
                count += 1
    return count


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
