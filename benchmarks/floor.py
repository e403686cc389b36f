"""The least time that a schedule can take on a machine: its multiply-adds, and the weights that it must read.

A launch (an op at some positions of all images) takes at least its multiply-adds over the peak, and the bytes of
its weights over the bandwidth of where they live: in the second or third level cache if what was read since they were
last needed fits there, else in memory. Launches follow each other, so the floor is the sum of the larger of the two.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pixelfast import _cpu
from pixelfast.schedule import Schedule

_CACHES = {2: 1 << 20, 3: 32 << 20}  # where the system does not tell: bytes of the second and third level


@dataclass(frozen=True)
class Peaks:
    """Of one thread: multiply-adds per second from registers, and bytes per second of matrix-vector products with
    weights in the second level cache, the third, and memory; `caches`: bytes of the two."""

    multiply_adds: float
    bandwidths: tuple[float, float, float]
    caches: tuple[int, int]

    def as_dict(self) -> dict[str, Any]:
        second, third, memory = self.bandwidths
        return {
            "multiply_adds_per_second": self.multiply_adds,
            "bytes_per_second": {"L2": second, "L3": third, "memory": memory},
            "cache_nbytes": {"L2": self.caches[0], "L3": self.caches[1]},
        }


def caches() -> tuple[int, int]:
    """Bytes of the second and third level cache, as the system tells."""
    found = dict(_CACHES)
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, size = (int((index / name).read_text().strip().rstrip("K")) for name in ("level", "size"))
        if level in found:
            found[level] = size << 10
    return found[2], found[3]


def measure(seconds: float = 0.3) -> Peaks:
    """Measure what one thread of this machine reaches."""
    second, third = caches()
    sizes = second // 2, third // 4, 4 * third
    bandwidths = tuple(_cpu.bandwidth(n, seconds=seconds) for n in sizes)
    return Peaks(_cpu.peak(seconds=seconds), bandwidths, (second, third))  # type: ignore[arg-type]


def rate() -> float:
    """Multiply-adds per second that one thread reaches just now: on a shared machine, often less than its best."""
    return statistics.median(_cpu.peak(seconds=1e-3) for _ in range(15))


def at(peaks: Peaks, rate: float) -> Peaks:
    """The peaks of a spell in which a thread reached no more than `rate`."""
    return replace(peaks, multiply_adds=min(rate, peaks.multiply_adds))


@dataclass(frozen=True)
class Work:
    """What a schedule launches, in order: ops and how many positions of them; and the weights of each op."""

    ops: np.ndarray
    positions: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, schedule: Schedule) -> Work:
        found = [(i, len(positions)) for _, i, positions in schedule.launches() if schedule.weights[i]]
        ops, positions = np.array(found, np.int64).reshape(-1, 2).T
        return cls(ops, positions, np.array(schedule.weights, np.int64))

    def lives(self, caches: tuple[int, int], word: int) -> np.ndarray:
        """For each launch where its weights are: 0 and 1 for the caches, 2 for memory. `word`: bytes of a weight."""
        last = np.full(len(self.weights), -1)
        level = np.empty(len(self.ops), np.int64)
        for t, i in enumerate(self.ops.tolist()):
            since = int(self.weights[last > last[i]].sum() + self.weights[i]) * word
            level[t] = 2 if last[i] < 0 else int(np.searchsorted(caches, since))
            last[i] = t
        return level


def seconds(work: Work, peaks: Peaks, batch: int, word: int = 4) -> dict[str, float]:
    """The floor of one thread, for a batch. Its parts: all multiply-adds over the peak, all bytes over bandwidths."""
    weights = work.weights[work.ops]
    products = batch * work.positions * weights / peaks.multiply_adds
    reading = weights * word / np.array(peaks.bandwidths)[work.lives(peaks.caches, word)]
    return {
        "multiply_adds": float(products.sum()),
        "weights": float(reading.sum()),
        "floor": float(np.maximum(products, reading).sum()),
    }


def describe(peaks: Mapping[str, Any]) -> str:
    """Peaks as a line for people."""
    bandwidth = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in peaks["bytes_per_second"].items())
    return f"{peaks['multiply_adds_per_second'] / 1e9:.0f} G multiply-adds/s and GB/s from {bandwidth}, in one thread"
