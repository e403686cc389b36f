"""How a module that does not say so may be read, from the size of what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..capture import inference_copy, unvalidated
from ..conditions import Conditions, examples_of
from ..heads import Bernoulli, Categorical, Head, LogisticMixture
from ..inputs import scaled
from ..outputs import _list, _pick
from .measure import said

ToInput = Callable[[Tensor], Tensor]


def guess(
    module: nn.Module,
    shape: tuple[int, int, int],
    to_input: ToInput | None,
    conditions: Conditions | None,
    output: Any,
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
        fed: Any = images if make is None else images.float() - 1 if to_input is None else make(images)
        try:
            with torch.no_grad(), unvalidated(), torch.random.fork_rng(devices=[]):
                found = copy(fed, **extra)
        except Exception as error:
            failed = said(error)
            continue
        head = _head(found, shape, output, name)
        return head, make
    raise ValueError(f"[audit] {name} does not take images of shape {(2, *shape)}: {failed}")


def _head(output: Any, shape: tuple[int, int, int], pick: Any, name: str) -> Head:
    colours, height, width = shape
    for head in _candidates(colours, _largest(output, pick, name).numel(), 2 * height * width):
        size = 2 * height * width * head.outputs(colours)
        try:
            head.read(_pick(output, pick, size, name), torch.zeros((2, *shape), dtype=torch.int64))
        except ValueError:
            continue
        return head
    raise ValueError(
        f"[audit] {name} does not say how its output is read, and {_list(output)} fits no head that is known; pass "
        "head=, e.g. pixelfast.heads.Categorical(256)"
    )


def _largest(output: Any, pick: Any, name: str) -> Tensor:
    try:
        return _pick(output, pick, None, name)
    except ValueError:
        from ..outputs import _tensors

        floats = [t for _, t in _tensors(output) if t.is_floating_point()]
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
