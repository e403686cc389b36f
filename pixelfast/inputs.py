"""Inputs: how integer levels become what a model's forward takes.

A model of `pixelfast.models` takes levels. For others, `pixelfast.compile(..., to_input=)` takes one of these, or any
function of an integer tensor (N, C, H, W) that PyTorch can export and that looks at each sub-pixel by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

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
        if isinstance(to_input, Scaled | OneHot):
            to_input = replace(to_input, levels=levels)
        self.to_input = to_input

    def forward(self, images: Tensor, **conditions: Any) -> Any:
        return self.module(self.to_input(images), **conditions)
