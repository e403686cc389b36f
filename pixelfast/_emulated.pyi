"""The cuda runtime on an emulation of a GPU. See csrc/cuda/bind.cpp."""

from collections.abc import Callable
from typing import Any

import numpy as np

def backend() -> str: ...
def devices() -> list[dict[str, Any]]: ...
def device_count() -> int: ...
def provoke(name: str) -> None: ...
def set_free_nbytes(nbytes: int) -> None: ...
def set_shared_nbytes(nbytes: int) -> None: ...
def set_capability(capability: int) -> None: ...

most_taps: int

def masked_conv(**arguments: Any) -> None: ...
def masked_conv_weight_grad(**arguments: Any) -> None: ...

class Program:
    last_multiply_adds: int
    device: str
    def __init__(
        self, words: np.ndarray, data: np.ndarray, device: int = 0, precision: str = "fp32"
    ) -> None: ...
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
        chunk: int = 0,
        team: int = 0,
        resident_nbytes: int = -1,
        spread: int = -1,
        progress: Callable[[float], object] | None = None,
    ) -> None: ...
    def run_there(self, *, tensors: object, images: int, log_prob: int, n: int, **options: Any) -> None: ...
    def estimates(
        self, *, n: int, chunk: int = 0, team: int = 0, resident_nbytes: int = -1, spread: int = -1
    ) -> list[dict[str, Any]]: ...
    def launches(self, spread: bool) -> list[tuple[int, bool, bool]]: ...
