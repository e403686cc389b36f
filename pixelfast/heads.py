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

    def logits(self, params: Tensor, images: Tensor) -> Tensor:
        """Return unnormalised log probabilities: float (N, levels, C, H, W), in nats.

        Those of a colour may depend on the earlier colours of the same pixel in `images`, integer (N, C, H, W).
        """

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

    def logits(self, params: Tensor, images: Tensor | None = None) -> Tensor:
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

    def logits(self, params: Tensor, images: Tensor | None = None) -> Tensor:
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


@dataclass(frozen=True)
class LogisticMixture:
    """A discretized mixture of logistics; the means of G and B depend on the drawn R and G.

    Salimans et al. 2017, section 2.1 and equations 2 and 3, in the layout of its public implementations. Parameters,
    for M mixtures: float (N, 10 M, H, W) for 3 colours, M logits, then for each colour M means, M log scales and M
    coefficients; float (N, 3 M, H, W) for 1 colour, M logits, M means, M log scales. Levels are -1 to 1 inside; the
    first and the last take in the tails. The mixture is of whole pixels: its weights for G are those for R times the
    likelihoods of the drawn R.

    Probabilities are exact differences of the logistic distribution, also far out, where public implementations
    clamp or approximate them.
    """

    mixtures: int = 10
    levels: int = 256
    name: ClassVar[str] = "logistic_mixture"

    def __post_init__(self) -> None:
        if self.mixtures < 1 or self.levels < 2:
            raise ValueError(
                f"[LogisticMixture] mixtures must be at least 1 and levels at least 2, got {self.mixtures} and "
                f"{self.levels}"
            )

    def outputs(self, channels: int) -> int:
        """Return 10 * mixtures for 3 colours, 3 * mixtures for 1."""
        if channels not in (1, 3):
            raise ValueError(f"[LogisticMixture] channels must be 1 or 3, got {channels}")
        return self.mixtures * (10 if channels == 3 else 3)

    def shape(self, flat: Tensor, channels: int) -> Tensor:
        """Return float (N, outputs, H, W) as it is."""
        return flat

    def logits(self, params: Tensor, images: Tensor) -> Tensor:
        """Return unnormalised log probabilities given the earlier colours: float (N, levels, C, H, W).

        images: uint8 or int64 (N, C, H, W) in [0, levels).
        """
        weights, means, log_scales = self._mixtures(params, images)
        every = torch.arange(self.levels, device=params.device).view(-1, 1, 1, 1, 1, 1)
        of_level = self._log_mass(every, means, log_scales)  # (levels, N, C, M, H, W)
        drawn = self._log_mass(images.long().unsqueeze(2), means, log_scales)  # (N, C, M, H, W)
        before = drawn.cumsum(1) - drawn
        return (of_level + before + weights.unsqueeze(1)).logsumexp(3).transpose(0, 1)

    def log_prob(self, params: Tensor, images: Tensor) -> Tensor:
        """Sum log probabilities over pixels.

        Args:
            params: float (N, outputs, H, W).
            images: uint8 or int64 (N, C, H, W) in [0, levels).

        Returns:
            float (N,), in nats; differentiable with respect to `params`.
        """
        n, channels, *size = images.shape
        _check("LogisticMixture.log_prob", params, (n, self.outputs(channels), *size))
        weights, means, log_scales = self._mixtures(params, images)
        mass = self._log_mass(images.long().unsqueeze(2), means, log_scales)
        return (mass.sum(1) + weights).logsumexp(1).flatten(1).sum(1)

    def _mixtures(self, params: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights (N, M, H, W), means and log scales (N, C, M, H, W)."""
        n, channels, height, width = images.shape
        params = params.float() if params.dtype.itemsize < 4 else params
        m = self.mixtures
        rest = params[:, m:].reshape(n, channels, -1, m, height, width)
        means, log_scales = rest[:, :, 0], rest[:, :, 1].clamp(min=-7)
        if channels == 3:
            x = (images.to(params.dtype) * (2 / (self.levels - 1)) - 1).unsqueeze(2)
            a, b, c = torch.tanh(rest[:, :, 2]).unbind(1)
            green = means[:, 1] + a * x[:, 0]
            blue = means[:, 2] + b * x[:, 0] + c * x[:, 1]
            means = torch.stack([means[:, 0], green, blue], dim=1)
        return params[:, :m].log_softmax(1), means, log_scales

    def _log_mass(self, level: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        """Log probability of levels under each logistic. With a above b, sigmoid(a) - sigmoid(b) is
        sigmoid(a) * sigmoid(-b) * (1 - exp(b - a)), which loses nothing to cancellation."""
        half = 1 / (self.levels - 1)
        x = level.to(means.dtype) * (2 * half) - 1
        scale = torch.exp(-log_scales)
        above = F.logsigmoid((x + half - means) * scale)
        below = F.logsigmoid((means - x + half) * scale)
        inside = torch.log(-torch.expm1(-2 * half * scale))
        first, last = level == 0, level == self.levels - 1
        zero = torch.zeros_like(above)
        return (
            torch.where(last, zero, above)
            + torch.where(first, zero, below)
            + torch.where(first | last, zero, inside.expand_as(above))
        )


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
