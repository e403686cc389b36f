"""Runtimes by name: a Program in, something with `run` out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from . import _cpu
from .program import Program
from .reference import Reference

BACKENDS = ("cpu", "reference")


class Runtime(Protocol):
    """What a loaded program offers. Shapes and meanings are those of `Reference.run`."""

    last_multiply_adds: int

    @property
    def run(self) -> Callable[..., None]: ...


def check(backend: str, isa: str | None) -> None:
    """Raise `ValueError` for an unknown backend, or an instruction set that this machine lacks."""
    if backend not in BACKENDS:
        raise ValueError(f"[compile] backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if isa is not None and isa not in _cpu.isas():
        raise ValueError(
            f"[compile] isa must be one of {', '.join(_cpu.isas())} on this machine, got {isa!r}"
        )


def load(program: Program, *, backend: str = "cpu", isa: str | None = None) -> Runtime:
    """Make a program ready to run.

    **Arguments:**

    - `backend`: "cpu", or "reference" (plain Python, for checking).
    - `isa`: the instruction set of the cpu backend; the best that there is, or PIXELFAST_ISA, by default.

    Raises `ValueError` for an unknown backend or an instruction set that this machine lacks.
    """
    if backend == "cpu":
        return _cpu.Program(program.words, program.data, isa)
    if backend == "reference":
        return Reference(program)
    raise ValueError(f"[compile] backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


def available_nbytes() -> int:
    """Memory that can be had now, by the kernel's estimate and the control group's limit."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except OSError:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        top = int(Path("/sys/fs/cgroup/memory.max").read_text())
        limits.append(top - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(min(limits), 0)
