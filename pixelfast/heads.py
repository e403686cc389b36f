"""Heads: what a model's output parameters say about the distribution of each sub-pixel.

A head reads an output of any layout: `read` finds its axes out from its shape, or takes them from `layout`, a string
such as "n (c k) h w" (see `pixelfast.axes`; k counts a sub-pixel's parameters). `logits` and `log_prob` read too.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .axes import arrange


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

    def read(self, output: Tensor, images: Tensor) -> Tensor:
        """Return parameters from a model's output for integer (N, C, H, W) images.

        Raises `ValueError` where its shape has none, or several, of the layouts that the head knows.
        """

    def logits(self, params: Tensor, images: Tensor) -> Tensor:
        """Return unnormalised log probabilities: float (N, levels, C, H, W), in nats.

        Those of a colour may depend on the earlier colours of the same pixel in `images`, integer (N, C, H, W).
        """

    def log_prob(self, params: Tensor, images: Tensor) -> Tensor:
        """Return the log probability of images: float (N,), in nats."""


class _Terse:
    """A dataclass that prints as what makes it differ from its defaults."""

    def __repr__(self) -> str:
        pairs = ((f.name, f.default, getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]
        given = ", ".join(f"{name}={value!r}" for name, default, value in pairs if value != default)
        return f"{type(self).__name__}({given})"


@dataclass(frozen=True, repr=False)
class Categorical(_Terse):
    """One logit, or probability, per level. Parameters: float (N, levels, C, H, W).

    `probabilities`: whether parameters are non-negative weights, which need not sum to one; those of 0 are never drawn.
    None lets `pixelfast.compile` find out, by whether they sum to one; elsewhere it says that they are logits.
    """

    levels: int
    _: KW_ONLY
    probabilities: bool | None = None
    layout: str | None = None
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

    def read(self, output: Tensor, images: Tensor) -> Tensor:
        """Return float (N, levels, C, H, W) from an output of any layout."""
        n, c, h, w = images.shape
        return arrange(output, {"n": n, "k": self.levels, "c": c, "h": h, "w": w}, self.layout, f"[{self}]")

    def logits(self, params: Tensor, images: Tensor | None = None) -> Tensor:
        """Return unnormalised log probabilities: float (N, levels, C, H, W).

        Parameters may have another layout if `images`, integer (N, C, H, W), say what the axes are.
        """
        params = params if images is None else self.read(params, images)
        return params.log() if self.probabilities else params

    def log_prob(self, params: Tensor, images: Tensor) -> Tensor:
        """Sum log probabilities over pixels and colours.

        Args:
            params: float, (N, levels, C, H, W) or in another layout.
            images: uint8 or int64 (N, C, H, W) in [0, levels).

        Returns:
            float (N,), in nats; differentiable with respect to `params`.

        Raises:
            ValueError: if `params` have no layout that the head knows.
        """
        logits = self.logits(_at_least_float(params), images)
        return -F.cross_entropy(logits, images.long(), reduction="none").flatten(1).sum(1)


@dataclass(frozen=True, repr=False)
class Bernoulli(_Terse):
    """The logit of level 1 against level 0, or its probability. Parameters: float (N, C, H, W).

    `probabilities`: whether parameters are probabilities, in [0, 1]. None lets `pixelfast.compile` find out, by whether
    the model ends in a sigmoid; elsewhere it says that they are logits.
    """

    _: KW_ONLY
    probabilities: bool | None = None
    layout: str | None = None
    name: ClassVar[str] = "bernoulli"
    levels: ClassVar[int] = 2

    def outputs(self, channels: int) -> int:
        """Return channels."""
        return channels

    def shape(self, flat: Tensor, channels: int) -> Tensor:
        """Return float (N, C, H, W) as it is."""
        return flat

    def read(self, output: Tensor, images: Tensor) -> Tensor:
        """Return float (N, C, H, W) from an output of any layout."""
        n, c, h, w = images.shape
        return arrange(output, {"n": n, "c": c, "h": h, "w": w}, self.layout, f"[{self}]")

    def logits(self, params: Tensor, images: Tensor | None = None) -> Tensor:
        """Return float (N, 2, C, H, W): of level 0 and of level 1. As `Categorical.logits`."""
        params = params if images is None else self.read(params, images)
        if self.probabilities:
            return torch.stack([1 - params, params], dim=1).log()
        return torch.stack([torch.zeros_like(params), params], dim=1)

    def log_prob(self, params: Tensor, images: Tensor) -> Tensor:
        """Sum log probabilities over pixels and colours.

        Args:
            params: float, (N, C, H, W) or in another layout.
            images: uint8 or int64 (N, C, H, W), 0 or 1.

        Returns:
            float (N,), in nats; differentiable with respect to `params`.

        Raises:
            ValueError: if `params` have no layout that the head knows.
        """
        logits = self.logits(_at_least_float(params), images)
        return -F.cross_entropy(logits, images.long(), reduction="none").flatten(1).sum(1)


@dataclass(frozen=True, repr=False)
class Custom(_Terse):
    """Any distribution: a function of the model's output, written in PyTorch, which says how likely each level is.

    `function(output, images)`, or `function(output)`, returns float or integer weights (N, levels, C, H, W), or in
    another layout that `Categorical` reads. Those of a colour may depend on earlier colours of the same pixel, as in
    `images`, int64 (N, C, H, W): that they depend on no later one is checked. Weights are not negative and need not sum
    to one; those of 0 are never drawn. With `probabilities=False` they are logits.

    `pixelfast.compile` exports the function with the model, so that no Python runs when images are drawn.
    """

    levels: int
    function: Callable[..., Tensor]
    _: KW_ONLY
    probabilities: bool = True
    layout: str | None = None
    name: ClassVar[str] = "custom"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(f"[Custom] function must be a function, got {self.function!r}")
        self.weights()

    def outputs(self, channels: int) -> int:
        """A custom head cannot say: raise ValueError."""
        raise ValueError("[Custom] how many outputs a custom head reads is not known")

    def shape(self, flat: Tensor, channels: int) -> Tensor:
        """Return float (N, outputs, H, W) as it is."""
        return flat

    def weights(self) -> Categorical:
        """Return the head that reads what `read` returns."""
        return Categorical(self.levels, probabilities=self.probabilities)

    def read(self, output: Tensor, images: Tensor) -> Tensor:
        """Return weights or logits: float (N, levels, C, H, W)."""
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(self.function).parameters.values()
        count = sum(p.kind in positional and p.default is p.empty for p in parameters)
        weights = self.function(output) if count == 1 else self.function(output, images.long())
        weights = weights if weights.is_floating_point() else weights.to(output.dtype)
        return replace(self.weights(), layout=self.layout).read(weights, images)

    def logits(self, params: Tensor, images: Tensor) -> Tensor:
        """Return unnormalised log probabilities, float (N, levels, C, H, W), from the model's output."""
        return self.weights().logits(self.read(params, images), images)

    def log_prob(self, params: Tensor, images: Tensor) -> Tensor:
        """Sum log probabilities over pixels and colours: float (N,), in nats.

        Args:
            params: the model's output.
            images: uint8 or int64 (N, C, H, W) in [0, levels).
        """
        return self.weights().log_prob(self.read(params, images), images)


@dataclass(frozen=True, repr=False)
class LogisticMixture(_Terse):
    """A discretized mixture of logistics; the means of G and B depend on the drawn R and G.

    Salimans et al. 2017, section 2.1 and equations 2 and 3, in the layout of its public implementations. Parameters,
    for M mixtures: float (N, 10 M, H, W) for 3 colours, M logits, then for each colour M means, M log scales and M
    coefficients; float (N, 3 M, H, W) for 1 colour, M logits, M means, M log scales. Levels are -1 to 1 inside; the
    first and the last take in the tails. The mixture is of whole pixels: its weights for G are those for R times the
    likelihoods of the drawn R.

    With `coupled=False` each colour has a mixture of its own, whatever the others are, for any number of colours.
    Parameters: float (N, 3 M, C, H, W), M logits, M means, M log scales; a network's colour-major channels are
    "n (c k) h w".

    Probabilities are exact differences of the logistic distribution, also far out, where public implementations
    clamp or approximate them.
    """

    mixtures: int = 10
    levels: int = 256
    _: KW_ONLY
    coupled: bool = True
    layout: str | None = None
    name: ClassVar[str] = "logistic_mixture"

    def __post_init__(self) -> None:
        if self.mixtures < 1 or self.levels < 2:
            raise ValueError(
                f"[LogisticMixture] mixtures must be at least 1 and levels at least 2, got {self.mixtures} and "
                f"{self.levels}"
            )

    def outputs(self, channels: int) -> int:
        """Return 10 * mixtures for 3 colours, 3 * mixtures for 1; 3 * channels * mixtures where not coupled."""
        if not self.coupled:
            return 3 * channels * self.mixtures
        if channels not in (1, 3):
            raise ValueError(f"[LogisticMixture] channels must be 1 or 3, got {channels}")
        return self.mixtures * (10 if channels == 3 else 3)

    def shape(self, flat: Tensor, channels: int) -> Tensor:
        """Return float (N, outputs, H, W) as it is, or as (N, 3 * mixtures, C, H, W) where not coupled."""
        n, _, h, w = flat.shape
        return flat if self.coupled else flat.view(n, channels, 3 * self.mixtures, h, w).transpose(1, 2)

    def read(self, output: Tensor, images: Tensor) -> Tensor:
        """Return float (N, outputs, H, W), or (N, 3 * mixtures, C, H, W) where not coupled."""
        n, c, h, w = images.shape
        own = {"k": self.outputs(c)} if self.coupled else {"k": 3 * self.mixtures, "c": c}
        return arrange(output, {"n": n, **own, "h": h, "w": w}, self.layout, f"[{self}]")

    def logits(self, params: Tensor, images: Tensor) -> Tensor:
        """Return unnormalised log probabilities given the earlier colours: float (N, levels, C, H, W).

        params: float, in any layout. images: uint8 or int64 (N, C, H, W) in [0, levels).
        """
        weights, means, log_scales = self._mixtures(params, images)
        every = torch.arange(self.levels, device=params.device).view(-1, 1, 1, 1, 1, 1)
        of_level = self._log_mass(every, means, log_scales)  # (levels, N, C, M, H, W)
        if self.coupled:
            drawn = self._log_mass(images.long().unsqueeze(2), means, log_scales)  # (N, C, M, H, W)
            weights = weights + drawn.cumsum(1) - drawn
        return (of_level + weights).logsumexp(3).transpose(0, 1)

    def log_prob(self, params: Tensor, images: Tensor) -> Tensor:
        """Sum log probabilities over pixels.

        Args:
            params: float (N, outputs, H, W), or (N, 3 * mixtures, C, H, W) where not coupled; or in another layout.
            images: uint8 or int64 (N, C, H, W) in [0, levels).

        Returns:
            float (N,), in nats; differentiable with respect to `params`.

        Raises:
            ValueError: if `params` have no layout that the head knows.
        """
        weights, means, log_scales = self._mixtures(params, images)
        mass = self._log_mass(images.long().unsqueeze(2), means, log_scales)
        if self.coupled:  # a mixture of whole pixels: one weight for all colours
            mass, weights = mass.sum(1, keepdim=True), weights[:, :1]
        return (mass + weights).logsumexp(2).flatten(1).sum(1)

    def _mixtures(self, params: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights (N, 1 or C, M, H, W), means and log scales (N, C, M, H, W)."""
        n, channels, height, width = images.shape
        params = self.read(_at_least_float(params), images)
        m = self.mixtures
        if not self.coupled:
            logits, means, log_scales = params.transpose(1, 2).split(m, 2)
            return logits.log_softmax(2), means, log_scales.clamp(min=-7)
        rest = params[:, m:].reshape(n, channels, 3 if channels == 3 else 2, m, height, width)
        means, log_scales = rest[:, :, 0], rest[:, :, 1].clamp(min=-7)
        if channels == 3:
            x = (images.to(params.dtype) * (2 / (self.levels - 1)) - 1).unsqueeze(2)
            a, b, c = torch.tanh(rest[:, :, 2]).unbind(1)
            green = means[:, 1] + a * x[:, 0]
            blue = means[:, 2] + b * x[:, 0] + c * x[:, 1]
            means = torch.stack([means[:, 0], green, blue], dim=1)
        return params[:, None, :m].log_softmax(2), means, log_scales

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
