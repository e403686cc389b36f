"""Fingerprints: whether two modules have the same architecture, so that what was found out about one holds for both.

A fingerprint is all that a module is made of except the values of its parameters, of its buffers and of the tensors
that are its attributes: classes with their code, hyperparameters, functions with what they close over, shapes.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import types
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


def fingerprint(module: nn.Module) -> tuple[bytes | None, list[Any]]:
    """Return a digest, None where there is no telling, and objects that must outlive it for it to be unique.

    Classes and functions count by identity, not by name: a cell of a notebook that is run again defines new ones.
    """
    writer = _Writer(module)
    try:
        writer.dump(module)
    except Exception:  # whatever the state of a stranger's object raises when it is written down
        return None, []
    return hashlib.sha256(writer.file.getvalue()).digest(), writer.kept


class _Writer(pickle.Pickler):
    """Writes a module down; what it writes is never read."""

    def __init__(self, module: nn.Module):
        self.file = io.BytesIO()
        super().__init__(self.file, protocol=5)
        self.kept: list[Any] = []
        parts = list(module.modules())
        own = [t for part in parts for d in (part._parameters, part._buffers, vars(part)) for t in d.values()]
        self.replaceable = {id(t) for t in own if isinstance(t, Tensor)}

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            content = None if id(value) in self.replaceable else _content(value)
            return "tensor", tuple(value.shape), value.dtype, value.requires_grad, content
        if isinstance(value, type):
            return "class", self.identity(value), *(self.identity(f) for f in _functions(value))
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return "function", self.identity(value.__code__), value.__defaults__, value.__kwdefaults__, cells
        if isinstance(value, types.ModuleType):
            return "module", value.__name__
        return None

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, nn.Module):
            return NotImplemented
        # A parametrized module is of a class made for it alone; what parametrizes it is among its parts.
        cls = type(value).__bases__[0] if is_parametrized(value) else type(value)
        return object, (cls,), {k: _unnumbered(v) for k, v in vars(value).items()}

    def identity(self, value: Any) -> int:
        self.kept.append(value)
        return id(value)


def _functions(cls: type) -> list[Any]:
    """The code of a module's class: methods may be replaced."""
    if not issubclass(cls, nn.Module):
        return []
    own = [c for c in cls.__mro__ if issubclass(c, nn.Module) and not c.__module__.startswith("torch.")]
    return [f.__code__ for c in own for f in vars(c).values() if isinstance(f, types.FunctionType)]


def _unnumbered(value: Any) -> Any:
    """Hooks without their keys, which count all hooks of the process."""
    hooks = isinstance(value, OrderedDict) and all(isinstance(key, int) for key in value)
    return list(value.values()) if hooks else value


def _content(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).digest()
