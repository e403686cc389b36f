"""How a module that does not say so may be read, from the size of what it returns."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..capture import unvalidated
from ..conditions import Conditions, examples_of
from ..frozen import inference_copy
from ..heads import Bernoulli, Categorical, Head, LogisticMixture
from ..inputs import Fed, scaled
from ..outputs import Pick, listed, pick_tensor, tensors_of
from ..prepare import prepare
from .effects import colour_leaks, said

ToInput = Callable[[Tensor], Tensor]


def guess_head(
    module: nn.Module,
    shape: tuple[int, int, int],
    to_input: ToInput | None,
    conditions: Conditions | None,
    output: Pick | None,
) -> tuple[Head, ToInput | None]:
    """A head that fits what forward returns; and `scaled(-1, 1)` where forward takes floats, if nothing was said.

    Raises `ValueError` where forward fails, or no head fits.
    """
    name = type(module).__name__
    images = torch.zeros((2, *shape), dtype=torch.int64)
    extra = examples_of(conditions or {}, "audit")
    copy = inference_copy(module)
    failed = ""
    for make in [to_input] if to_input is not None else [None, scaled(-1, 1)]:
        try:
            with torch.no_grad(), unvalidated():
                given = images if make is None else Fed(nn.Identity(), make, 256)(images)
                found = copy(given, **extra)
        except Exception as error:
            failed = said(error)
            continue
        fits = _fitting(found, shape, output, name)
        told: Any = {"shape": shape, "to_input": make, "conditions": conditions, "output": output}
        return _settle(module, fits, told), make
    raise ValueError(f"[audit] {name} cannot be run on images of shape {(2, *shape)}: {failed}")


def _fitting(output: Any, shape: tuple[int, int, int], pick: Pick | None, name: str) -> list[Head]:
    """The likeliest head that fits, with each layout that it may have."""
    colours, height, width = shape
    images = torch.zeros((2, *shape), dtype=torch.int64)
    for head in _candidates(colours, _largest(output, pick, name).numel(), 2 * height * width):
        size = 2 * height * width * head.outputs(colours)
        try:
            head.read(pick_tensor(output, pick, size, name), images)
        except ValueError as error:
            layouts = re.findall(r'"([^"]+)"', str(error)) if "pass layout=" in str(error) else []
            if not layouts:
                continue
            return [replace(head, layout=layout) for layout in layouts]  # type: ignore[type-var]
        return [head]
    raise ValueError(
        f"[audit] {name} does not say how its output is read, and {listed(output)} fits no head that is known; "
        "pass head=, e.g. pixelfast.heads.Categorical(256)"
    )


def _settle(module: nn.Module, heads: list[Head], told: Any) -> Head:
    """The first by which no colour leaks: a layout with colours and levels confused makes them."""
    for head in heads[:-1]:
        if not colour_leaks(prepare(module, head=head, **told)):
            return head
    return heads[-1]


def _largest(output: Any, pick: Pick | None, name: str) -> Tensor:
    try:
        return pick_tensor(output, pick, None, name)
    except ValueError:
        floats = [t for _, t in tensors_of(output) if t.is_floating_point()]
        return max(floats, key=Tensor.numel, default=torch.zeros(0))


def _candidates(colours: int, total: int, positions: int) -> list[Head]:
    """Heads by how likely they are, of as many parameters at each position."""
    each, rest = divmod(total, positions)
    found: list[Head] = []
    if rest or not each:
        return found
    if each == 256 * colours:
        found.append(Categorical(256))
    if each == colours:
        found.append(Bernoulli())
    mixture = {1: 3, 3: 10}.get(colours)
    if mixture and each % mixture == 0:
        found.append(LogisticMixture(each // mixture))
    if each % colours == 0 and each // colours >= 2:
        found.append(Categorical(each // colours))
    return found
