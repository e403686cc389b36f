"""What an idiom is: a way to write a module, and its broken variants."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import pixelfast as pf
from pixelfast.inputs import Fed

CLASSES = 3


@dataclass(frozen=True)
class Idiom:
    """A kind of module: how to make one, how it is compiled, and what is expected of it."""

    make: Callable[[str | None], nn.Module]  # of None, or of one of `broken`
    broken: tuple[str, ...]
    shape: tuple[int, int, int]
    head: pf.heads.Head
    to_input: Callable[[Tensor], Tensor] | None = None
    classes: int | None = None  # forward takes labels
    _: KW_ONLY
    skew: int  # of the smallest wavefront, as its author would say
    last: str = "last"  # the submodule that yields logits
    spread: float = 2.0  # the standard deviation of what it yields

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `pixelfast.compile`."""
        conditions = {"labels": torch.int64} if self.classes else {}
        return {"shape": self.shape, "head": self.head, "to_input": self.to_input, "conditions": conditions}

    def labels(self, n: int, first: int = 0) -> dict[str, Tensor]:
        """Forward's further arguments, for images first .. first+n-1."""
        return {"labels": torch.arange(first, first + n) % self.classes} if self.classes else {}

    def images(self, n: int, seed: int = 3) -> Tensor:
        """Random levels, int64 (N, C, H, W)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, self.head.levels, (n, *self.shape), generator=generator)

    def build(self, broken: str | None = None) -> nn.Module:
        """Make the module as if it were trained: loud, with weights under the masks, and with statistics.

        Its forward has not run, so masks that forward applies have not been applied.
        """
        module = self._perturbed(broken)
        with torch.no_grad():
            # a twin runs, since forward may write to the weights
            output = self._run(self._perturbed(broken).double().eval(), self.images(8), self.labels(8))
            if isinstance(self.head, pf.heads.Bernoulli) and output.min() >= 0 and output.max() <= 1:
                output = torch.logit(output)
            factor = self.spread / max(output.std().item(), 0.1)
            for name, p in module.get_submodule(self.last).named_parameters():
                if p.requires_grad and not name.endswith(
                    ("weight_v", "original1")
                ):  # directions have no length
                    p.mul_(factor)
        return module

    def exact(self, module: nn.Module, images: Tensor, labels: dict[str, Tensor], head: Any = None) -> Tensor:
        """float64 (N, levels, C, H, W): log probabilities, as the module itself computes them when in float64."""
        head = self.head if head is None else head
        with torch.no_grad():
            return head.logits(self._run(module, images, labels), images).log_softmax(1)

    def _perturbed(self, broken: str | None) -> nn.Module:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old weight norm is deprecated
            module = self.make(broken)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in (p for p in module.parameters() if p.requires_grad):
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
            for name, buffer in module.named_buffers():
                if name.endswith("running_mean"):
                    buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
                if name.endswith("running_var"):
                    buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        return module

    def _run(self, module: nn.Module, images: Tensor, labels: dict[str, Tensor]) -> Tensor:
        x = images
        if self.to_input is not None:
            x = Fed(module, self.to_input, self.head.levels).to_input(images).double()
        return module(x, **labels)


def double(idiom: Idiom, broken: str | None = None) -> nn.Module:
    """The module of `Idiom.build`, in float64, for inference."""
    return idiom.build(broken).double().eval()
