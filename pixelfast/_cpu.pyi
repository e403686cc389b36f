"""The native cpu runtime. See csrc/cpu/bind.cpp."""

from collections.abc import Callable
from typing import Any

import numpy as np

def opcodes() -> dict[str, int]: ...
def functions() -> dict[str, tuple[int, int]]: ...
def constants() -> dict[str, int]: ...
def isas() -> list[str]: ...
def bf16_kernels(isa: str = "") -> str: ...
def default_isa() -> str: ...
def default_threads() -> int: ...
def math(name: str, x: np.ndarray | tuple[np.ndarray, ...], isa: str = "") -> np.ndarray: ...
def peak(isa: str = "", threads: int = 1, seconds: float = 0.2) -> float: ...
def bandwidth(nbytes: int, isa: str = "", seconds: float = 0.2) -> float: ...

class Program:
    last_multiply_adds: int
    isa: str
    arena_nbytes: int
    weights_nbytes: int
    working_nbytes: int
    def __init__(
        self, words: np.ndarray, data: np.ndarray, isa: str | None = None, precision: str = "fp32"
    ) -> None: ...
    def images_at_once(self, *, n: int, threads: int = 0, chunk: int = 0, team: int = 0) -> int: ...
    def run(
        self,
        *,
        images: np.ndarray,
        log_prob: np.ndarray,
        given: np.ndarray | bool | None = None,
        conditions: np.ndarray | None = None,
        seed: int = 0,
        first_index: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        threads: int = 0,
        chunk: int = 0,
        team: int = 0,
        progress: Callable[[float], object] | None = None,
        profiled: bool = False,
    ) -> dict[str, Any] | None: ...
