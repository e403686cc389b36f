"""Small functions of feature maps as modules, all in one, so that many cases share a capture."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import logits_of, recompile, scorer

import pixelfast as pf

HEIGHT, WIDTH, CLASSES = 3, 4, 3
ALL = slice(None)


def param(*shape: int) -> Tensor:
    """A constant, the same whenever it is asked for."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def like(h: Tensor, *shape: int) -> Tensor:
    return param(*shape).to(h.dtype)


def set_slice(h: Tensor, value, *index) -> Tensor:
    h = h.clone()
    h[index] = value
    return h


class Odd(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.asinh()


class Parts(nn.Module):
    """Feature maps `h` of an image, functions of them, and all results side by side as logits.

    A part takes this module, `h`, float (N, 4, H, W), the levels, and the labels; it returns (N, any, H, W).
    """

    def __init__(self, parts: dict[str, Callable], colours: int = 1, classes: int | None = None) -> None:
        super().__init__()
        self.parts, self.channels, self.classes = parts, colours, classes
        self.shape = (colours, HEIGHT, WIDTH)
        torch.manual_seed(0)
        self.first = nn.Conv2d(colours, 4, (1, 2))
        self.embed, self.odd = nn.Embedding(CLASSES, 4), Odd()
        self.grid = nn.Embedding(CLASSES, 4 * HEIGHT * WIDTH)
        self.sizes: dict[str, int] = {}
        self.head = pf.heads.Categorical(5)
        with torch.no_grad():
            args = (torch.zeros(2, *self.shape, dtype=torch.int64),) + (
                torch.zeros(2, dtype=torch.int64),
            ) * bool(classes)
            for name, value in self.results(*args).items():
                assert value.shape[2:] == (HEIGHT, WIDTH), name
                self.sizes[name] = value.shape[1]
        self.count = sum(self.sizes.values())
        self.head = pf.heads.Categorical(max(-(-self.count // colours), 2))

    def results(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        dtype = self.first.weight.dtype
        x = images.to(dtype) * (4 / (self.head.levels - 1)) - 2
        h = self.first(F.pad(x, (1, 0)))
        arguments = (h, images) if labels is None else (h, images, labels)
        return {name: part(self, *arguments) for name, part in self.parts.items()}

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        flat = torch.cat(list(self.results(images, labels).values()), 1)
        flat = F.pad(flat, (0, 0, 0, 0, 0, self.channels * self.head.levels - self.count))
        return flat.view(flat.shape[0], self.channels, self.head.levels, HEIGHT, WIDTH).transpose(1, 2)


def evaluate(module: Parts) -> tuple[dict[str, Tensor], np.ndarray]:
    """What PyTorch makes of a module's parts in float64, and the engine's parameters, side by side."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, module.head.levels, (2, *module.shape), generator=generator)
    labels = {"labels": torch.tensor([2, 1])} if module.classes else {}
    sampler = scorer(module, module.shape)
    got = logits_of(sampler, images, **labels)  # (N, C, H, W, levels)
    got = got.transpose(0, 1, 4, 2, 3).reshape(2, -1, HEIGHT, WIDTH)
    reference, native = (recompile(sampler, sampler.schedule, backend=b) for b in ("reference", "cpu"))
    assert torch.equal(reference.log_prob(images, **labels), native.log_prob(images, **labels))
    with torch.no_grad():
        return copy.deepcopy(module).double().results(images, **labels), got


def part_of(module: Parts, name: str, got: np.ndarray) -> np.ndarray:
    """The engine's result of one part."""
    names = list(module.sizes)
    at = sum(module.sizes[n] for n in names[: names.index(name)])
    return got[:, at : at + module.sizes[name]]
