"""Prepare: a module and what was said about it, as one module that is captured; then captured, lowered and planned."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import passes
from . import plan as P
from .capture import Captured, capture
from .conditions import Conditions, examples_of, of_two_images
from .heads import Bernoulli, Categorical, Custom, Head, LogisticMixture
from .inputs import Fed
from .lower import lower
from .outputs import Pick, Read, settle
from .values import Condition


@dataclass(frozen=True, eq=False)
class Prepared:
    """`module` takes int64 images (N, C, H, W) and the conditions, and returns the head's parameters.

    `examples`: for each condition, (2, ...): its value for two images. `classes`: how many values those have of which
    that is known.
    """

    module: Read
    name: str
    shape: tuple[int, int, int]
    head: Head
    examples: dict[str, Tensor]
    classes: dict[str, int]


@dataclass(frozen=True, eq=False)
class Planned:
    """A captured model and its plan, split and pruned; `head` is of its own layout."""

    captured: Captured
    head: Head
    conditions: tuple[Condition, ...]
    plan: P.Plan


def own_head(module: nn.Module) -> Head | None:
    """The head that a module brings; not a layer that is called so."""
    found = getattr(module, "head", None)
    return found if isinstance(found, Categorical | Bernoulli | LogisticMixture | Custom) else None


def prepare(
    module: nn.Module,
    *,
    shape: tuple[int, int, int],
    head: Head | None,
    to_input: Callable[[Tensor], Tensor] | None,
    conditions: Conditions | None,
    output: Pick | None,
) -> Prepared:
    """Arguments as for `pixelfast.compile`. Raises `ValueError` where they do not fit the module."""
    check_module(module)
    name, own = type(module).__name__, own_head(module)
    head = own if head is None else head
    if head is None:
        raise ValueError(
            f"[compile] {name} does not say how its output is read; pass head=, "
            "e.g. pixelfast.heads.Categorical(256)"
        )
    if not isinstance(head, Categorical | Bernoulli | LogisticMixture | Custom):
        raise ValueError(f"[compile] head must be one of pixelfast.heads, got {head!r}")
    channels, classes = shape[0], None
    if own is not None:
        channels, classes = getattr(module, "channels", channels), getattr(module, "classes", None)
    if channels != shape[0]:
        raise ValueError(f"[compile] the model has {channels} channels, but shape is {shape}")
    if conditions is None:
        conditions = {"labels": torch.int64} if classes else {}
    examples = examples_of(conditions)
    if to_input is not None:
        module = Fed(module, to_input, head.levels)
    labels = examples.get("labels")
    numbers = labels is not None and labels.ndim == 1 and not labels.is_floating_point()
    known = {"labels": classes} if classes and numbers else {}
    return Prepared(Read(module, head, output, name), name, shape, head, examples, known)


def make_plan(prepared: Prepared) -> Planned:
    """Raises `CaptureError`, `LoweringError`, or `ValueError` where the output is not what the head reads."""
    captured = capture(
        prepared.module,
        shape=prepared.shape,
        levels=prepared.head.levels,
        conditions=prepared.examples,
        others=of_two_images(prepared.examples, prepared.classes),
        name=prepared.name,
    )
    head = settle(captured, prepared.head)
    lowered = lower(captured, head)
    found = passes.inline(passes.prune(passes.split(lowered.plan)))
    found.verify()
    return Planned(captured, head, lowered.conditions, found)


def check_module(module: Any, where: str = "compile") -> None:
    """Raises `ValueError`."""
    if isinstance(module, nn.Module):
        return
    if isinstance(getattr(module, "__self__", None), nn.Module):
        hint = f"pass the {type(module.__self__).__name__} itself, whose forward is what is compiled"
    elif isinstance(module, type):
        hint = "pass an instance of it, with its weights"
    else:
        hint = "a function can be the forward of a small Module that holds whatever has weights"
    raise ValueError(f"[{where}] module must be a torch.nn.Module, got a {type(module).__name__}; {hint}")


def check_shape(shape: Any, where: str = "compile") -> tuple[int, int, int]:
    """(C, H, W) as integers. Raises `ValueError`."""
    try:
        found = tuple(operator.index(s) for s in shape)
    except TypeError:
        found = ()
    if len(found) != 3 or min(found) < 1:
        raise ValueError(f"[{where}] shape must be three positive integers (C, H, W), got {shape!r}")
    return found[0], found[1], found[2]
