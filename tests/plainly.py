"""Sampling the plain way: a forward pass of the whole network for each sub-pixel, and a draw with pixelfast's noise."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelfast import numerics


@torch.no_grad()
def sample(model, n: int, shape: tuple[int, int, int], seed: int, **conditions: Tensor) -> Tensor:
    """int64 (N, C, H, W), the same as a sampler's but where a probability is rounded across a draw.

    model: `model(images, **conditions)` returns what its `head` reads.
    """
    colours, height, width = shape
    images = torch.zeros(n, *shape, dtype=torch.int64)
    for y in range(height):
        for x in range(width):
            for c in range(colours):
                logits = model.head.logits(model(images, **conditions), images)[:, :, c, y, x]
                for i in range(n):
                    noise = numerics.uniform(seed, i, (y * width + x) * colours + c)
                    images[i, c, y, x] = numerics.draw(numerics.frequencies(logits[i].numpy()), noise)
    return images
