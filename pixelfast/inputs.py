"""Inputs: how integer levels become what a model's forward takes.

A model of `pixelfast.models` takes levels. For others, `pixelfast.compile(..., to_input=)` takes one of these, or any
function of an integer tensor (N, C, H, W) that PyTorch can export and that looks at each sub-pixel by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Scaled:
    """float32 (N, C, H, W): level 0 becomes `low`, the last level `high`."""

    low: float
    high: float
    levels: int | None = None

    def __call__(self, images: Tensor) -> Tensor:
        assert self.levels is not None
        return images.float() * ((self.high - self.low) / (self.levels - 1)) + self.low


@dataclass(frozen=True)
class Normalized:
    """float32 (N, C, H, W): levels as 0 to 1, less the mean, over the standard deviation, of each colour."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    levels: int | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            raise ValueError(
                f"[normalized] mean and std must be as many, and std positive, got {self.mean} and {self.std}"
            )

    def __call__(self, images: Tensor) -> Tensor:
        assert self.levels is not None
        if len(self.mean) not in (1, images.shape[1]):
            raise ValueError(f"[normalized] {len(self.mean)} means for {images.shape[1]} colours")
        mean, std = (torch.tensor(v, dtype=torch.float32).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return (images.float() / (self.levels - 1) - mean) / std


@dataclass(frozen=True)
class OneHot:
    """float32 (N, levels * C, H, W): a plane for each level of each colour, colour by colour."""

    levels: int | None = None

    def __call__(self, images: Tensor) -> Tensor:
        assert self.levels is not None
        planes = F.one_hot(images, self.levels).float().permute(0, 1, 4, 2, 3)
        return planes.reshape(images.shape[0], -1, *images.shape[2:])


@dataclass(frozen=True)
class Floats:
    """float32 (N, C, H, W): the levels themselves."""

    def __call__(self, images: Tensor) -> Tensor:
        return images.float()


def scaled(low: float, high: float) -> Scaled:
    """Levels spread evenly from `low` to `high`, as float32 (N, C, H, W)."""
    return Scaled(low, high)


def normalized(mean: float | Sequence[float], std: float | Sequence[float]) -> Normalized:
    """Levels as 0 to 1, then less `mean` and over `std`, of each colour or of all: float32 (N, C, H, W).

    As torchvision's `ToTensor` and `Normalize`. Raises ValueError where there are not as many means as deviations, or a
    deviation is not positive.
    """
    return Normalized(_each(mean), _each(std))


def _each(value: float | Sequence[float]) -> tuple[float, ...]:
    return (value,) if isinstance(value, int | float) else tuple(value)


def one_hot() -> OneHot:
    """A plane per level, as float32 (N, C * levels, H, W), colour by colour."""
    return OneHot()


def floats() -> Floats:
    """The levels as float32 (N, C, H, W)."""
    return Floats()


class Fed(nn.Module):
    """A module whose input is made from levels by `to_input`."""

    def __init__(self, module: nn.Module, to_input: Callable[[Tensor], Tensor], levels: int):
        super().__init__()
        self.module = module
        if isinstance(to_input, Scaled | Normalized | OneHot):
            to_input = replace(to_input, levels=levels)
        self.to_input = to_input

    def forward(self, images: Tensor, **conditions: Any) -> Any:
        return self.module(self.to_input(images), **conditions)
