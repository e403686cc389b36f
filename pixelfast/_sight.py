"""Sight: what one pixel of a model sees, how strongly, and when pixels are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ._audit.effects import Manner, Runner, manner
from .capture import forked, unvalidated
from .cascade import enlarged
from .conditions import Conditions
from .explain import Explanation
from .heads import Head
from .models.multi_scale import MultiScale
from .orders import ORDERS
from .outputs import Pick
from .prepare import Prepared, check_module, check_shape, make_plan, prepare
from .receptive import ReceptiveField, receptive_field
from .sampler import compile, sampler_of

kBatch = 32  # images that are run at once
kFloats = 1 << 23  # parameters of distributions that are held at once
kNoise = {torch.float64: 1e-14, torch.float32: 1e-6}  # total variation below which there is but rounding


@dataclass(frozen=True, eq=False)
class Sight:
    """What `look` finds.

    field: which pixels reach the pixel, exactly.
    strength: float64 (H, W), how strongly: see `strength`. 0 where nothing is seen, and at the pixel itself. None if it
        was not measured.
    steps: int64 (H, W), the pixels' steps; the colours of a pixel, one after another, count as one.
    explanation: of a sampling run.
    """

    field: ReceptiveField
    strength: np.ndarray | None
    steps: np.ndarray
    explanation: Explanation


def look(
    model: nn.Module,
    *,
    shape: tuple[int, int, int] | None = None,
    order: str = "auto",
    pixel: tuple[int, int] | None = None,
    images: int = 4,
    head: Head | None = None,
    to_input: Callable[[Tensor], Tensor] | None = None,
    conditions: Conditions | None = None,
    output: Pick | None = None,
    progress: bool = False,
) -> Sight:
    """Arguments as for `viz.receptive_field`."""
    where = "receptive_field"
    check_module(model, where)
    if shape is None:
        shape = getattr(model, "shape", None)
        if shape is None:
            name = type(model).__name__
            raise ValueError(f"[{where}] {name} does not say the shape of its images; pass shape=(C, H, W)")
    shape = check_shape(shape, where)
    if order not in ORDERS:
        raise ValueError(f"[{where}] order must be one of {', '.join(ORDERS)}, got {order!r}")
    if pixel is not None and not (
        isinstance(pixel, Sequence) and len(pixel) == 2 and all(isinstance(i, Integral) for i in pixel)
    ):
        raise ValueError(f"[{where}] pixel must be two integers (y, x), got {pixel!r}")
    if not isinstance(images, Integral) or images < 0:
        raise ValueError(f"[{where}] images must be an integer of at least 0, got {images!r}")
    known: dict[str, Any] = {}
    if isinstance(model, MultiScale):
        if any(given is not None for given in (head, to_input, conditions, output)):
            raise ValueError(
                f"[{where}] a MultiScale model brings its own head, inputs and conditions: pass none of them"
            )
        model, conditions = _largest_scale(model, shape)
        known = enlarged(conditions["small"][None], shape)
    prepared = prepare(model, shape=shape, head=head, to_input=to_input, conditions=conditions, output=output)
    planned = make_plan(prepared)
    pixel = (shape[1] // 2, shape[2] // 2) if pixel is None else pixel
    field = receptive_field(planned.plan, pixel)
    sampler = sampler_of(prepared, planned, order=order)
    found = None
    if images:
        given = {key: value[0] for key, value in prepared.examples.items()}
        drawn = sampler.sample(images, conditions=given, **known).images.long()
        found = strength(prepared, planned.head, field.pixel, field.mask, drawn, progress=progress)
    steps = sampler.schedule.order.steps[0].astype(np.int64) // shape[0]
    return Sight(field, found, steps, sampler.explain())


def _largest_scale(model: MultiScale, shape: tuple[int, int, int]) -> tuple[nn.Module, dict[str, Any]]:
    """The model of the largest images, and what it is conditioned on: a small one that the model draws."""
    conditions: dict[str, Any] = {"labels": torch.int64} if model.classes else {}
    drawn = compile(model, shape=shape).sample(1, labels=0 if model.classes else None)
    return model.stages[-1], conditions | {"small": drawn.images[0, :, ::2, ::2].long()}


def strength(
    prepared: Prepared,
    head: Head,
    pixel: tuple[int, int],
    seen: np.ndarray,
    images: Tensor,
    *,
    progress: bool = False,
) -> np.ndarray:
    """float64 (H, W): how strongly the distribution of `pixel` depends on each other pixel.

    That is the total variation distance, in [0, 1], by which it changes when all colours of the other pixel change to
    random other levels: the mean over its colours and over `images`, int64 (N, C, H, W). It needs no gradient, which
    a model that embeds levels has not. Only pixels where `seen`, bool (H, W), is true are changed. `head`: of the
    planned model. A small image that a larger one is given stays what it was. The module is copied, and run in float64
    if it can be.
    """
    how = manner(prepared)
    runner = _runner(prepared, how)
    generator = torch.Generator().manual_seed(0)
    found = np.zeros(seen.shape)
    places = [(y, x) for y, x in np.argwhere(seen).tolist() if (y, x) != pixel]
    sub_pixels = images[0].numel()
    size = max(1, min(kBatch, kFloats // (sub_pixels * head.levels)) - 1)
    with tqdm(total=len(places), desc="receptive field", disable=not progress, leave=False) as bar:
        for start in range(0, len(places), size):
            part = torch.tensor(places[start : start + size])
            y, x = part.T
            for image in images:
                changed = image.repeat(len(part) + 1, 1, 1, 1)
                by = torch.randint(1, head.levels, (len(part), len(image)), generator=generator)
                changed[torch.arange(len(part)) + 1, :, y, x] += by
                p = _distributions(runner, how, head, changed % head.levels, pixel)
                apart = (p[1:] - p[:1]).abs().sum(1).mean(1) / 2
                found[y.numpy(), x.numpy()] += apart.numpy() / len(images)
            bar.update(len(part))
    found[found < kNoise[runner.dtype]] = 0
    return found


def _runner(prepared: Prepared, how: Manner) -> Runner:
    runner = Runner(prepared, torch.float64)
    try:
        runner.run(runner.images(how.least, 0))
    except Exception:  # a forward that makes float32 of its own meets weights of float64
        return Runner(prepared)
    return runner


def _distributions(runner: Runner, how: Manner, head: Head, images: Tensor, pixel: tuple[int, int]) -> Tensor:
    """float64 (N, levels, C): those of one pixel."""
    y, x = pixel
    at = (..., slice(y, y + 1), slice(x, x + 1))
    batches = [image.repeat(how.least, 1, 1, 1) for image in images] if how.alone else [images]
    with torch.no_grad(), unvalidated(), forked():
        params = [runner.forward(batch)[at].double() for batch in batches]
    whole = torch.cat([p[:1] for p in params]) if how.alone else params[0]
    return head.logits(whole, images[at]).softmax(1)[..., 0, 0]
