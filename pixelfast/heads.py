"""Heads: what a model's output parameters say about the distribution of each sub-pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Head(Protocol):
    """A discrete distribution over `levels` values of each sub-pixel, given parameters."""

    @property
    def name(self) -> str: ...

    @property
    def levels(self) -> int: ...

    def outputs(self, channels: int) -> int:
        """Return the number of output channels a model of `channels` colours needs."""

    def shape(self, flat: Tensor, channels: int) -> Tensor:
        """Return parameters from a network's output, float (N, outputs, H, W), colour-major."""

    def logits(self, params: Tensor) -> Tensor:
        """Return unnormalised log probabilities: float (N, levels, C, H, W), in nats."""

    def log_prob(self, params: Tensor, images: Tensor) -> Tensor:
        """Return the log probability of images: float (N,), in nats."""


@dataclass(frozen=True)
class Categorical:
    """One logit per level. Parameters: float (N, levels, C, H, W)."""

    levels: int
    name: ClassVar[str] = "categorical"

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"[Categorical] levels must be at least 2, got {self.levels}")

    def outputs(self, channels: int) -> int:
        """Return channels * levels."""
        return channels * self.levels

    def shape(self, flat: Tensor, channels: int) -> Tensor:
        """View float (N, C * levels, H, W) as float (N, levels, C, H, W)."""
        n, _, h, w = flat.shape
        return flat.view(n, channels, self.levels, h, w).transpose(1, 2)

    def logits(self, params: Tensor) -> Tensor:
        """Return the parameters: they are the logits, float (N, levels, C, H, W)."""
        return params

    def log_prob(self, params: Tensor, images: Tensor) -> Tensor:
        """Sum log probabilities over pixels and colours.

        Args:
            params: float (N, levels, C, H, W), unnormalised, in nats.
            images: uint8 or int64 (N, C, H, W) in [0, levels).

        Returns:
            float (N,), in nats; differentiable with respect to `params`.
        """
        _check("Categorical.log_prob", params, (images.shape[0], self.levels, *images.shape[1:]))
        loss = F.cross_entropy(_at_least_float(params), images.long(), reduction="none")
        return -loss.flatten(1).sum(1)


@dataclass(frozen=True)
class Bernoulli:
    """The logit of level 1 against level 0. Parameters: float (N, C, H, W)."""

    name: ClassVar[str] = "bernoulli"
    levels: ClassVar[int] = 2

    def outputs(self, channels: int) -> int:
        """Return channels."""
        return channels

    def shape(self, flat: Tensor, channels: int) -> Tensor:
        """Return float (N, C, H, W) as it is."""
        return flat

    def logits(self, params: Tensor) -> Tensor:
        """Return float (N, 2, C, H, W): zero for level 0, the parameter for level 1."""
        return torch.stack([torch.zeros_like(params), params], dim=1)

    def log_prob(self, params: Tensor, images: Tensor) -> Tensor:
        """Sum log probabilities over pixels and colours.

        Args:
            params: float (N, C, H, W), the logit of level 1, in nats.
            images: uint8 or int64 (N, C, H, W), 0 or 1.

        Returns:
            float (N,), in nats; differentiable with respect to `params`.
        """
        _check("Bernoulli.log_prob", params, tuple(images.shape))
        params = _at_least_float(params)
        loss = F.binary_cross_entropy_with_logits(params, images.to(params.dtype), reduction="none")
        return -loss.flatten(1).sum(1)


def make_head(name: str, levels: int) -> Categorical | Bernoulli:
    """Return the head called `name` ("categorical" or "bernoulli") for that many levels.

    Raises:
        ValueError: for an unknown name, or "bernoulli" with levels other than 2.
    """
    if name == Categorical.name:
        return Categorical(levels)
    if name == Bernoulli.name:
        if levels != 2:
            raise ValueError(f"[Bernoulli] levels must be 2, got {levels}")
        return Bernoulli()
    raise ValueError(f'[make_head] head must be "categorical" or "bernoulli", got {name!r}')


def bits_per_dim(log_prob: Tensor, dims: int | Sequence[int]) -> Tensor:
    """Turn log probabilities in nats into bits per sub-pixel.

    Args:
        log_prob: float, any shape, in nats.
        dims: the number of sub-pixels, or a shape such as (C, H, W) whose product it is.

    Returns:
        float, the shape of `log_prob`: -log_prob / (dims * ln 2).

    Raises:
        ValueError: if `dims` is not positive.
    """
    count = dims if isinstance(dims, int) else math.prod(dims)
    if count < 1:
        raise ValueError(f"[bits_per_dim] dims must be positive, got {dims}")
    return log_prob / (-count * math.log(2))


def _at_least_float(params: Tensor) -> Tensor:
    return params.float() if params.dtype.itemsize < 4 else params


def _check(where: str, params: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(params.shape) != shape:
        raise ValueError(f"[{where}] params must have shape {shape}, got {tuple(params.shape)}")
