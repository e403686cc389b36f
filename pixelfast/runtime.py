"""Runtimes by name: a Program in, something with `run` out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from . import _cpu, _emulated
from .program import Program
from .reference import Reference

try:
    from . import _cuda
except ImportError:  # built without an nvcc
    _cuda = None  # type: ignore[assignment]

BACKENDS = ("cpu", "cuda", "emulated", "reference")
PRECISIONS = ("fp32", "bf16")
_BACKEND = re.compile(r"cpu|reference|(cuda|emulated)(:[0-9]{1,3})?")


class Runtime(Protocol):
    """What a loaded program offers. Shapes and meanings are those of `Reference.run`."""

    last_multiply_adds: int

    @property
    def run(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class Target:
    """Where a program runs, and how exactly.

    - `backend`: "cpu", "cuda" or "cuda:1" for the second GPU, or for checking "reference" (plain Python) and "emulated"
        (the code of "cuda" on an emulation of a GPU).
    - `isa`: the instruction set of the cpu backend; the best that there is, or PIXELFAST_ISA, by default.
    - `precision`: "fp32", or "bf16".

    Raises `ValueError` for what there is not, in general or on this machine.
    """

    backend: str = "cpu"
    isa: str | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.kind not in BACKENDS or not _BACKEND.fullmatch(self.backend):
            raise ValueError(
                f"[compile] backend must be one of {', '.join(BACKENDS)}, or such as cuda:1, got {self.backend!r}"
            )
        if self.kind == "cuda" and (missing := no_cuda()):
            raise ValueError(f'[compile] backend cuda cannot be had: {missing}; use backend="cpu"')
        if self.on_device and self.index >= (count := _devices(self.kind).device_count()):
            raise ValueError(
                f"[compile] backend {self.backend}: there are {count} devices, from {self.kind}:0 on"
            )
        if self.isa is not None and self.isa not in _cpu.isas():
            raise ValueError(
                f"[compile] isa must be one of {', '.join(_cpu.isas())} on this machine, got {self.isa!r}"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"[compile] precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        if self.precision == "bf16" and self.backend == "reference":
            raise ValueError("[compile] precision bf16 is not one of backend 'reference'")
        if self.precision == "bf16" and self.backend == "cpu" and not _cpu.bf16_kernels(self.isa or ""):
            raise ValueError(
                f"[compile] precision bf16 needs AVX-512 with BF16, which {self.isa or 'this machine'} lacks; "
                'use precision="fp32"'
            )

    @property
    def kind(self) -> str:
        """The backend without the number of a device."""
        return self.backend.partition(":")[0]

    @property
    def index(self) -> int:
        """Which device, from 0."""
        return int(self.backend.partition(":")[2] or 0)

    @property
    def on_device(self) -> bool:
        """Whether memory is that of a device."""
        return self.kind in ("cuda", "emulated")

    @property
    def device(self) -> torch.device:
        """Where tensors are that go in and come out."""
        return torch.device("cuda", self.index) if self.kind == "cuda" else torch.device("cpu")

    def load(self, program: Program) -> Runtime:
        """Make a program ready to run."""
        if self.kind == "reference":
            return Reference(program)
        if self.on_device:
            return _devices(self.kind).Program(program.words, program.data, self.index, self.precision)
        return _cpu.Program(program.words, program.data, self.isa, self.precision)


def _devices(kind: str) -> Any:
    return _cuda if kind == "cuda" else _emulated


def no_cuda() -> str | None:
    """Why the cuda backend cannot be had; None where it can."""
    if _cuda is None:
        return "pixelfast was built without CUDA"
    if not _cuda.device_count():
        return "there is no GPU, or no driver for it"
    return None if torch.cuda.is_available() else "PyTorch cannot use the GPU"


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
