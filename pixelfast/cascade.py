"""Cascade: a model of several scales as one sampler, which is a `Sampler` for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arguments import broadcast, integer, total
from .models.multi_scale import MultiScale
from .prepare import make_plan, prepare
from .profile import Profile
from .runtime import Target
from .sampler import Sample, Sampler, sampler_of


class Cascade(Sampler):
    """A compiled `pixelfast.models.MultiScale`: draws the smallest image, then the new pixels of each larger one.

    Every scale has noise of its own, made of the seed.

    Attributes:
        shape, levels: of the largest images.
    """

    def __init__(self, stages: tuple[Sampler, ...]) -> None:
        self._stages = stages
        last = stages[-1]
        self.shape, self.levels, self.target = last.shape, last.levels, last.target
        self.order = ", ".join(stage.order for stage in stages)

    @property
    def stages(self) -> tuple[Sampler, ...]:
        """The samplers of all scales, the smallest first. The others are conditioned on `small`, int64 (C, h, w)."""
        return self._stages

    def __repr__(self) -> str:
        sizes = ", ".join(f"{stage.shape[1]}x{stage.shape[2]}" for stage in self.stages)
        return f"Cascade(shape={self.shape}, levels={self.levels}, sizes={sizes}, steps={self.steps})"

    @property
    def steps(self) -> int:
        """Sequential steps of one image, of all scales."""
        return sum(stage.steps for stage in self.stages)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one image, of all scales."""
        return sum(stage.multiply_adds for stage in self.stages)

    def explain(self, n: int = 64) -> Explanations:  # type: ignore[override]
        """What a sampling run does, scale by scale; on a GPU for a batch of n images. `print` it."""
        return Explanations(stage.explain(n) for stage in self.stages)

    def sample(
        self,
        n: int,
        *,
        labels: Any = None,
        conditions: Mapping[str, Any] | None = None,
        seed: int = 0,
        given: Any = None,
        known: Any = None,
        per_pixel: bool = False,
        **options: Any,
    ) -> Sample:
        """Draw images, scale by scale. Arguments, results and errors are those of `Sampler.sample`."""
        n = integer("n", n, 0)
        if (given is None) != (known is None):
            raise ValueError(
                "[sample] given and known come together: the images, and where they are to be kept"
            )
        kept = levels = None
        if given is not None:
            kept = broadcast("known", known, (n, *self.shape))
            levels = broadcast("given", self._levels("sample", given), (n, *self.shape))
        images = log_prob = None
        for i, stage in enumerate(self.stages):
            step = 2 ** (len(self.stages) - 1 - i)
            own: dict[str, Any] = {"conditions": conditions}
            if kept is not None and levels is not None:
                own |= {"known": kept[:, :, ::step, ::step], "given": levels[:, :, ::step, ::step]}
            if images is not None:
                own |= enlarged(images, stage.shape, own.get("known"), own.get("given"))
                own["conditions"] = {**(conditions or {}), "small": images.long()}
            drawn = stage.sample(n, labels=labels, seed=_seed_of(seed, i), per_pixel=True, **own, **options)
            log_prob = _joined(drawn.log_prob, log_prob)
            images = drawn.images
        assert images is not None
        assert log_prob is not None
        return Sample(images, log_prob if per_pixel else total(log_prob))

    def log_prob(
        self,
        images: Any,
        *,
        labels: Any = None,
        conditions: Mapping[str, Any] | None = None,
        per_pixel: bool = False,
        **options: Any,
    ) -> Tensor:
        """Score images: to the bit what sampling them would have computed. Arguments are those of `Sampler`'s."""
        levels = self._levels("log_prob", images)
        if levels.ndim != 4 or levels.shape[1:] != self.shape:
            raise ValueError(f"[log_prob] images must have shape (N, {', '.join(map(str, self.shape))}), got "
                             f"{tuple(levels.shape)}")  # fmt: skip
        found = small = None
        for i, stage in enumerate(self.stages):
            step = 2 ** (len(self.stages) - 1 - i)
            image = levels[:, :, ::step, ::step].astype(np.int64)
            own = conditions if small is None else {**(conditions or {}), "small": small}
            scored = stage.log_prob(image, labels=labels, conditions=own, per_pixel=True, **options)
            found = _joined(scored, found)
            small = image
        assert found is not None
        return found if per_pixel else total(found)

    def verify(
        self, *, conditions: Mapping[str, Any] | None = None, seed: int = 0, tolerance: float = 1e-3
    ) -> float:
        """Compare the sampler of each scale with its module, as `Sampler.verify` does, on images of this sampler.

        Returns the largest difference, in nats.
        """
        classes = next(iter(self.stages[0]._classes.values()), 0)
        given = dict(conditions or ({"labels": torch.arange(2) % classes} if classes else {}))
        images = self.sample(2, seed=seed, conditions=given).images.long()
        found = []
        for i, stage in enumerate(self.stages):
            step = 2 ** (len(self.stages) - i)
            own = {**given, "small": images[:, :, ::step, ::step]} if i else given
            found.append(stage.verify(conditions=own, seed=_seed_of(seed, i), tolerance=tolerance))
        return max(found)

    def profile(self, n: int, *, quiet: bool = False, **options: Any) -> Profile:
        """Not of all scales at once: raises ValueError that says so."""
        raise ValueError("[profile] a cascade is profiled scale by scale: cascade.stages[i].profile(n, ...)")

    def rescheduled(self, schedule: Any, target: Target | None = None) -> Sampler:
        """Not of all scales at once: raises ValueError that says so."""
        raise ValueError(
            "[rescheduled] a cascade has a schedule for each scale: cascade.stages[i].rescheduled(...)"
        )


class Explanations(tuple):
    """What `Sampler.explain` says of each scale."""

    def __str__(self) -> str:
        return "\n\n".join(map(str, self))


def cascade_of(module: MultiScale, shape: tuple[int, int, int], *, order: str, target: Target) -> Cascade:
    """Compile every scale. Raises as `pixelfast.compile`."""
    channels, height, width = shape
    count = len(module.stages) + 1
    stages = []
    small: tuple[int, int, int] | None = None
    for i, model in enumerate((module.first, *module.stages)):
        step = 2 ** (count - 1 - i)
        size = (channels, -(-height // step), -(-width // step))
        conditions: dict[str, Any] = {"labels": torch.int64} if module.classes else {}
        if small is not None:
            conditions["small"] = torch.zeros(small, dtype=torch.int64)
        prepared = prepare(model, shape=size, head=None, to_input=None, conditions=conditions, output=None)
        stages.append(sampler_of(prepared, make_plan(prepared), order=order, target=target))
        small = size
    return Cascade(tuple(stages))


def _seed_of(seed: int, stage: int) -> int:
    """A seed for each scale, so that no two pixels of an image have the same noise."""
    seed = integer("seed", seed, 0, 2**64 - 1)
    return int(np.random.SeedSequence([seed, stage]).generate_state(1, np.uint64)[0]) if stage else seed


def enlarged(
    small: Tensor,
    shape: tuple[int, int, int],
    known: np.ndarray | None = None,
    given: np.ndarray | None = None,
) -> dict[str, Any]:
    """What is known of larger images: `small`, every other pixel of every other row, and what was known already."""
    size = (len(small), *shape)
    levels = np.zeros(size, np.int64) if given is None else given.astype(np.int64)
    kept = np.zeros(size, bool) if known is None else known.copy()
    levels[:, :, ::2, ::2], kept[:, :, ::2, ::2] = small.cpu().numpy(), True
    return {"given": levels, "known": kept}


def _joined(log_prob: Tensor, small: Tensor | None) -> Tensor:
    """(N, C, H, W): of new pixels at this scale, of all others at the one before."""
    if small is not None:
        log_prob[:, :, ::2, ::2] = small
    return log_prob
