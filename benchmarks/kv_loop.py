"""A well-made incremental sampler of transformers in plain PyTorch, the baseline that a careful user would write.

Every layer keeps the keys and values of all tokens so far, in memory that is allocated once; each token computes its
own and attends to them in place. So each element is computed once, as in pixelfast: what differs is what every one of
those small steps costs. Nothing waits for the device, so the loop serves GPUs, too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelfast.models import AutoregressiveModel
from pixelfast.models.pixel_transformer import PixelTransformer


def knows(model: AutoregressiveModel) -> bool:
    """Return whether `Cached` takes such a model."""
    return isinstance(model, PixelTransformer)


@torch.inference_mode()
def sample(
    model: PixelTransformer, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Draw images with PyTorch's own random numbers, on the model's device: int64 (N, C, H, W).

    labels: int64 (N,), iff the model has classes.
    """
    tokens = torch.zeros(n, len(model.positions), dtype=torch.int64, device=model.positions.device)
    draw(Cached(model, n, labels), tokens, range(tokens.shape[1]), generator=generator)
    return tokens.view(n, *model.size, model.channels).permute(0, 3, 1, 2).contiguous()


@torch.inference_mode()
def draw(state: Cached, tokens: Tensor, steps: range, *, generator: torch.Generator | None = None) -> None:
    """Draw some of `tokens`, int64 (N, H * W * C), in place. `state` and `tokens` hold those before them.

    A step takes time that grows with its number, so what is extrapolated should be timed in the middle.
    """
    for at in steps:
        output = state.step(at, tokens[:, at - 1] if at else None)
        if output.shape[1] == 1:
            tokens[:, at] = torch.bernoulli(output.sigmoid(), generator=generator)[:, 0]
        else:  # the least of exponential variables with these rates; torch.multinomial waits for the device
            noise = torch.empty_like(output).exponential_(generator=generator)
            tokens[:, at] = (output - noise.log_()).argmax(1)


@torch.inference_mode()
def outputs(model: PixelTransformer, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return what `model.network` returns for these images, token by token: float (N, outputs, H, W).

    images: uint8 or int64 (N, C, H, W). labels: int64 (N,), iff the model has classes.
    """
    n = len(images)
    tokens = images.long().permute(0, 2, 3, 1).flatten(1)
    state = Cached(model, n, labels)
    found = [state.step(at, tokens[:, at - 1] if at else None) for at in range(tokens.shape[1])]
    return torch.stack(found, 1).view(n, *model.size, -1).permute(0, 3, 1, 2)


class Cached:
    """The keys and values of n images in every layer: float (2, N, heads, H * W * C, hidden / heads) each.

    model: its weights are read where they are. labels: int64 (N,), iff the model has classes.
    """

    def __init__(self, model: PixelTransformer, n: int, labels: Tensor | None = None) -> None:
        if not knows(model):
            raise ValueError(f"[Cached] model must be a PixelTransformer, got {type(model).__name__}")
        self.heads, (length, self.hidden) = model.config["heads"], model.positions.shape
        self.positions, self.tokens = model.positions.detach(), model.tokens.weight.detach()
        start = model.start.weight if labels is None else model.start(labels)
        self.start = start.detach().expand(n, -1)
        blocks: Any = model.layers
        self.layers = [
            (
                block.before_attention.weight.detach(),
                block.project.weight.detach().T,
                block.join.weight.detach().T,
                block.before_wide.weight.detach(),
                block.widen.weight.detach().T,
                block.narrow.weight.detach().T,
                # Zeros, so that steps can be timed without those before them.
                self.start.new_zeros(2, n, self.heads, length, self.hidden // self.heads),
            )
            for block in blocks
        ]
        self.epsilon = model.norm.eps
        self.norm, self.last = model.norm.weight.detach(), model.last.weight.detach().T

    def step(self, at: int, level: Tensor | None) -> Tensor:
        """Return float (N, outputs), the parameters of token `at`, once those before it have gone through here.

        level: int64 (N,), of the token before it; None for the first.
        """
        x = self.start if level is None else F.embedding(level, self.tokens)
        n, x = len(x), x + self.positions[at]
        for before_attention, project, join, before_wide, widen, narrow, cache in self.layers:
            own = (self._norm(x, before_attention) @ project).view(n, 3, self.heads, 1, -1)
            cache[:, :, :, at : at + 1] = own[:, 1:].transpose(0, 1)
            keys, values = cache[:, :, :, : at + 1]
            seen = F.scaled_dot_product_attention(own[:, 0], keys, values)
            x.addmm_(seen.reshape(n, self.hidden), join)
            wide = self._norm(x, before_wide) @ widen
            x.addmm_(wide.mul_(torch.sigmoid(1.702 * wide)), narrow)
        return self._norm(x, self.norm) @ self.last

    def _norm(self, x: Tensor, gain: Tensor) -> Tensor:
        return F.rms_norm(x, (self.hidden,), gain, self.epsilon)
