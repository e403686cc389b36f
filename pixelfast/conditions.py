"""Conditions: what forward takes besides images, as `compile` is told of it and as `sample` is given it.

A condition of one image is a number or a tensor of a fixed shape; it is evaluated once for each distinct value, alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .capture import BATCH, Conditioner
from .program import Program
from .values import Condition

Conditions = Mapping[str, torch.dtype | Tensor]


def examples_of(conditions: Conditions, where: str = "compile") -> dict[str, Tensor]:
    """(2, ...) of each condition: its example for two images; zeros where only a dtype is known."""
    if not isinstance(conditions, Mapping):
        raise ValueError(
            f"[{where}] conditions must map names to dtypes or example tensors, got {conditions!r}"
        )
    found = {}
    for name, value in conditions.items():
        if isinstance(value, torch.dtype):
            value = torch.zeros((), dtype=value)
        if not isinstance(value, Tensor):
            raise ValueError(
                f"[{where}] conditions: {name} must be a torch.dtype, for a number, or an example Tensor of one image, "
                f"got {value!r}"
            )
        found[name] = value.detach().cpu().expand(BATCH, *value.shape).clone()
    return found


def of_two_images(examples: Mapping[str, Tensor], classes: Mapping[str, int]) -> dict[str, Tensor]:
    """(2, ...) of each condition: the example, and another that any model takes which takes the example."""
    return {
        name: torch.arange(BATCH) % classes[name] if name in classes else varied(example)
        for name, example in examples.items()
    }


def varied(example: Tensor) -> Tensor:
    """An example (2, ...) in which the second image's differs, where any model that takes the one takes the other.

    Rows may trade places; so may the numbers of a vector if they are floats or truth values, and all 0 or 1: classes in
    a vector may have ranges of their own.
    """
    first = example[0]
    by_row = first.ndim >= 2
    code = first.ndim == 1 and (first.is_floating_point() or first.dtype == torch.bool)
    if not (by_row or (code and ((first == 0) | (first == 1)).all())):
        return example
    return torch.stack([first, first.roll(1, -2 if by_row else -1)])


def gather(
    where: str, n: int, given: Mapping[str, Any], conditioner: Conditioner, classes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Each condition as (n, ...) of the dtype that forward takes, on the CPU. Raises `ValueError`."""
    names = conditioner.names
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"[{where}] the model is conditioned on {', '.join(names)}: {missing[0]} is missing")
    if unknown := [name for name in given if name not in names]:
        known = ", ".join(names) or "nothing"
        raise ValueError(f"[{where}] the model is conditioned on {known}; got {unknown[0]} too")
    return {
        name: _checked(f"[{where}] {name}", given[name], n, example, classes.get(name))
        for name, example in zip(names, conditioner.examples, strict=True)
    }


def _checked(what: str, value: Any, n: int, example: Tensor, classes: int | None) -> Tensor:
    shape, dtype = tuple(example.shape[1:]), example.dtype
    wanted = f"forward takes {str(dtype)[6:]} of shape {shape} for each image" if shape else ""
    wanted = wanted or f"forward takes one {str(dtype)[6:]} for each image"
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{what} must be numbers or a tensor, got {value!r:.60}; {wanted}") from None
    if tuple(tensor.shape) not in (shape, (n, *shape)):
        allowed = f"have shape {shape} or {(n, *shape)}" if shape else f"be a number or have shape {(n,)}"
        raise ValueError(f"{what} must {allowed}, got {tuple(tensor.shape)}; {wanted}")
    kind = _kind(dtype)
    if kind != "numbers" and _kind(tensor.dtype) != kind and tensor.numel():
        raise ValueError(f"{what} must be {kind}, got {tensor.dtype}; {wanted}")
    if classes is not None and tensor.numel() and (tensor.min() < 0 or tensor.max() >= classes):
        raise ValueError(
            f"{what} must be in [0, {classes}), got values from {tensor.min()} to {tensor.max()}"
        )
    found = tensor.to(dtype)
    if kind == "integers" and not torch.equal(found.to(tensor.dtype), tensor):
        raise ValueError(f"{what} must fit {dtype}, got values from {tensor.min()} to {tensor.max()}")
    return found if found.ndim > len(shape) else found.expand(n, *shape)


def _kind(dtype: torch.dtype) -> str:
    """What may be given for a dtype: a float may be written as an integer."""
    if dtype == torch.bool:
        return "truth values"
    return "numbers" if dtype.is_floating_point or dtype.is_complex else "integers"


def evaluate(
    where: str,
    n: int,
    values: Mapping[str, Tensor],
    conditioner: Conditioner,
    conditions: Sequence[Condition],
    program: Program,
) -> np.ndarray:
    """float32 (n, condition_floats): what PyTorch makes of the conditions, once for each distinct value."""
    result = np.zeros((n, program.condition_floats), np.float32)
    rows: dict[tuple[bytes, ...], list[int]] = {}
    for i, key in enumerate(zip(*(_bytes(v) for v in values.values()), strict=True)):
        rows.setdefault(key, []).append(i)
    for members in rows.values():
        one = {name: value[members[0]] for name, value in values.items()}
        try:
            env = conditioner.run(one)
        except Exception as error:
            said = ", ".join(f"{name} {_range(value)}" for name, value in one.items())
            raise ValueError(
                f"[{where}] the model failed on the conditions of image {members[0]}, {said}: "
                f"{type(error).__name__}: {error}"
            ) from error
        for i, offset in program.condition_offsets.items():
            condition = conditions[i]
            block = condition.arrange(env[condition.node]).reshape(-1)
            result[members, offset : offset + block.size] = block
    return result


def _bytes(value: Tensor) -> list[bytes]:
    """Of each image's."""
    shared = len(value) > 0 and value.stride(0) == 0
    flat = (value[:1] if shared else value).unsqueeze(-1).flatten(1).contiguous()
    return [row.tobytes() for row in flat.view(torch.uint8).numpy()] * (len(value) if shared else 1)


def _range(value: Tensor) -> str:
    if value.numel() < 2:
        return str(value.tolist())
    return f"{str(value.dtype)[6:]} {tuple(value.shape)} from {value.min()} to {value.max()}"
