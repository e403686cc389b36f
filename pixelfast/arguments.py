"""What goes into a run and comes out of it: arguments checked and converted, and where tensors are."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def integer(name: str, value: Any, low: int, high: int | None = None, *, where: str = "sample") -> int:
    """`value` as an integer in [low, high]. Raises ValueError."""
    try:
        found = operator.index(value)
    except TypeError:
        raise ValueError(f"[{where}] {name} must be an integer, got {value!r}") from None
    if found < low or (high is not None and found > high):
        limits = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"[{where}] {name} must be {limits}, got {found}")
    return found


def broadcast(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if name == "known" and array.dtype != bool:
        raise ValueError(f"[sample] known must be bool, got {array.dtype}")
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"[sample] {name} must broadcast to {shape}, got {array.shape}") from None


def total(log_prob: Tensor) -> Tensor:
    """Sum over sub-pixels in one fixed order, in float64."""
    flat = log_prob.reshape(len(log_prob), math.prod(log_prob.shape[1:])).cpu().numpy().astype(np.float64)
    return torch.from_numpy(np.add.accumulate(flat, axis=1)[:, -1].astype(np.float32)).to(log_prob.device)


def addresses(
    levels: Tensor, log_prob: Tensor, values: np.ndarray | None, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """What a runtime on a device is told: where tensors are, on the current stream. They live as long as the dict."""
    device, arguments = levels.device, dict(arguments)
    if device.type == "cuda":  # what PyTorch keeps for later is not free
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if idle > torch.cuda.mem_get_info(device)[0]:
            torch.cuda.empty_cache()
    given = arguments.pop("given", None)
    sent = {
        "given": torch.from_numpy(given).to(device) if isinstance(given, np.ndarray) else None,
        "conditions": None if values is None else torch.from_numpy(values).to(device),
    }
    tensors = {"images": levels, "log_prob": log_prob, **sent}
    return {
        "tensors": tuple(tensors.values()),
        **{name: 0 if t is None else t.data_ptr() for name, t in tensors.items()},
        "all_given": given is True,
        "n": len(levels),
        "stream": torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else -1,
        **arguments,
    }
