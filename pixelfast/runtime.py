"""Runtimes by name: a Program in, something with `run` out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import _cpu, _emulated
from .program import Program
from .reference import Reference

try:
    from . import _cuda
except ImportError:  # built without an nvcc
    _cuda = None  # type: ignore[assignment]

BACKENDS = ("cpu", "cuda", "emulated", "reference")
PRECISIONS = ("fp32", "bf16")


class Runtime(Protocol):
    """What a loaded program offers. Shapes and meanings are those of `Reference.run`."""

    last_multiply_adds: int

    @property
    def run(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class Target:
    """Where a program runs, and how exactly.

    - `backend`: "cpu", "cuda", or for checking "reference" (plain Python) and "emulated" (the code of "cuda" on an
        emulation of a GPU).
    - `isa`: the instruction set of the cpu backend; the best that there is, or PIXELFAST_ISA, by default.
    - `precision`: "fp32", or "bf16".

    Raises `ValueError` for what there is not, in general or on this machine.
    """

    backend: str = "cpu"
    isa: str | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"[compile] backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if self.backend == "cuda" and (missing := no_cuda()):
            raise ValueError(f'[compile] backend cuda cannot be had: {missing}; use backend="cpu"')
        if self.isa is not None and self.isa not in _cpu.isas():
            raise ValueError(
                f"[compile] isa must be one of {', '.join(_cpu.isas())} on this machine, got {self.isa!r}"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"[compile] precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        if self.precision == "bf16" and self.backend != "cpu":
            raise ValueError(f"[compile] precision bf16 is of the cpu backend, got backend {self.backend!r}")
        if self.precision == "bf16" and not _cpu.bf16_kernels(self.isa or ""):
            raise ValueError(
                f"[compile] precision bf16 needs AVX-512 with BF16, which {self.isa or 'this machine'} lacks; "
                'use precision="fp32"'
            )

    def load(self, program: Program) -> Runtime:
        """Make a program ready to run."""
        if self.backend == "reference":
            return Reference(program)
        if self.backend == "emulated":
            return _emulated.Program(program.words, program.data)
        if self.backend == "cuda":
            return _cuda.Program(program.words, program.data)
        return _cpu.Program(program.words, program.data, self.isa, self.precision)


def no_cuda() -> str | None:
    """Why the cuda backend cannot be had; None where it can."""
    if _cuda is None:
        return "pixelfast was built without CUDA"
    return None if _cuda.devices() else "there is no GPU, or no driver for it"


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
