"""A module as capture takes it: a copy for inference, which writes to nothing of its own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_IN_PLACE = {  # but not __invert__, __int__, __index__
    f"__i{op}__"
    for op in (
        "add",
        "sub",
        "mul",
        "div",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
    )
}


def inference_copy(module: nn.Module) -> nn.Module:
    """The module for inference: on the CPU, in float32, without dropout or gradients."""
    memo: dict[int, Any] = {}  # deepcopy refuses results of computations: normed weights, cached activations
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, torch.jit.ScriptFunction):  # nor does it take these
                memo[id(value)] = value
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, Tensor) and not tensor.is_leaf:
                    memo[id(tensor)] = tensor.detach().clone()
    with torch.no_grad():
        return copy.deepcopy(module, memo).cpu().eval().float().requires_grad_(False)


def resize_caches(module: nn.Module, batch: int) -> bool:
    """Give tensors that forward keeps for a batch of another size (of ones, say) the size of the batch at hand."""
    found = False
    for part in module.modules():
        for name, value in list(vars(part).items()):
            batched = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] not in (0, 1, batch)
            if batched and (value == value[:1]).all():
                setattr(part, name, value[:1].expand(batch, *value.shape[1:]).clone())
                found = True
    return found


class Settled(nn.Module):
    """The module, while what its forward writes to its own parameters and buffers is dropped.

    Many public models mask their weights by `self.weight.data *= self.mask` in forward. One run of it has masked them;
    a graph that is to be a function of its inputs must not do it again.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, images: Tensor, **conditions: Tensor) -> Any:
        with _DropWrites(self.module):
            return self.module(images, **conditions)


class _DropWrites(TorchFunctionMode):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def owns(self, value: Any) -> bool:
        return isinstance(value, Tensor) and any(
            value is t for t in (*self.module.parameters(), *self.module.buffers())
        )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if func == Tensor.data.__get__:  # type: ignore[attr-defined]
            return args[0].clone()
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            return None
        in_place = name == "__setitem__" or name in _IN_PLACE or (name[-1:] == "_" and name[-2:] != "__")
        if in_place and args and self.owns(args[0]):
            func(args[0].clone(), *args[1:], **(kwargs or {}))
            return args[0]
        return func(*args, **(kwargs or {}))
