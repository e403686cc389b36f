"""The plain way to sample: one forward pass of the whole network per sub-pixel. For comparison."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from .models import AutoregressiveModel, MultiScale


def draw(model: AutoregressiveModel, images: Tensor, labels: Tensor | None = None) -> Iterator[None]:
    """Draw `images`, int64 (N, C, H, W), in place, in raster order; yield after each sub-pixel.

    labels: int64 (N,), iff the model has classes. Raises ValueError for a model of another order.
    """
    if isinstance(model, MultiScale):
        raise ValueError("[draw] a MultiScale model is not drawn in raster order: draw its scales one by one")
    _, colours, height, width = images.shape
    for y in range(height):
        for x in range(width):
            for c in range(colours):
                with torch.inference_mode():
                    params = model(images) if labels is None else model(images, labels=labels)
                    logits = model.head.logits(params, images)[:, :, c, y, x]
                    images[:, c, y, x] = torch.multinomial(logits.softmax(1), 1)[:, 0]
                yield


def seconds(
    model: AutoregressiveModel,
    shape: tuple[int, int, int, int],
    labels: Tensor | None = None,
    passes: int = 3,
) -> tuple[float, float]:
    """Time a few steps of `draw` on the device of the model, after one to warm up.

    shape: (N, C, H, W).

    Returns the seconds of the fastest step, and of all C * H * W steps, extrapolated.
    """
    device = next(model.parameters()).device
    steps = draw(model, torch.zeros(shape, dtype=torch.int64, device=device), labels)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    next(steps)
    times = []
    for _ in range(min(passes, math.prod(shape[1:]) - 1) or 1):
        wait()
        start = time.perf_counter()
        next(steps, None)
        wait()
        times.append(time.perf_counter() - start)
    step = min(times)  # what disturbs a measurement only ever makes it longer
    return step, step * math.prod(shape[1:])
