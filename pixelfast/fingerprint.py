"""Fingerprints: whether two modules have the same architecture, so that what was found out about one holds for both.

A fingerprint is all that a module is made of except the values of its parameters, of its buffers and of the tensors
that are its attributes: classes with their code and attributes, hyperparameters, functions with what they close over
and the globals that they name, shapes.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
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
        self.known: set[int] = set()  # functions and classes that have been written down
        parts = list(module.modules())
        own = [t for part in parts for d in (part._parameters, part._buffers, vars(part)) for t in d.values()]
        self.replaceable = {id(t) for t in own if isinstance(t, Tensor)}

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            content = None if id(value) in self.replaceable else _content(value)
            return "tensor", tuple(value.shape), value.dtype, value.requires_grad, content
        if isinstance(value, type):
            return "class", self.identity(value), _attributes(value) if self.expands(value, value) else None
        if isinstance(value, types.FunctionType):
            code = value.__code__
            around = _surroundings(value) if self.expands(value, code) else None
            return (
                "function",
                self.identity(code),
                value.__defaults__,
                value.__kwdefaults__,
                _cells(value),
                around,
            )
        if isinstance(value, types.ModuleType):
            return "module", value.__name__
        return None

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, nn.Module):
            return NotImplemented
        # A parametrized module is of a class made for it alone; what parametrizes it is among its parts.
        cls = type(value).__bases__[0] if is_parametrized(value) else type(value)
        return object, (cls,), {k: _unnumbered(v) for k, v in vars(value).items()}

    def expands(self, value: Any, key: Any) -> bool:
        """Whether what belongs to a function or class is to be written down: once, and only of strangers'."""
        first = id(key) not in self.known
        self.known.add(id(key))
        return first and _is_strange(value)

    def identity(self, value: Any) -> int:
        self.kept.append(value)
        return id(value)


def _is_strange(value: Any) -> bool:
    """Whether a function or class is of a module that may change from one compile to the next."""
    home = str(value.__module__).partition(".")[0]
    return home == "__main__" or home not in {*sys.stdlib_module_names, "torch", "numpy", "pixelfast"}


def _cells(function: types.FunctionType) -> list[Any]:
    """What a function closes over."""
    return [cell.cell_contents for cell in function.__closure__ or ()]


def _surroundings(function: types.FunctionType) -> list[Any]:
    """All that a function may look at, besides its arguments."""
    names, codes = set[str](), [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    around = {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}
    return list(around.items())


def _attributes(cls: type) -> list[Any]:
    """The methods and other attributes of a class and of those that it inherits from."""
    found: list[Any] = []
    for base in cls.__mro__[:-1]:
        if not _is_strange(base):
            found.append(base)
            continue
        for name, value in vars(base).items():
            if isinstance(value, staticmethod | classmethod):
                value = value.__func__
            if isinstance(value, property):
                value = [value.fget, value.fset]
            if name not in _OF_EVERY_CLASS and not isinstance(value, types.GetSetDescriptorType):
                found.append((name, value))
    return found


_OF_EVERY_CLASS = {
    "__dict__",
    "__weakref__",
    "__doc__",
    "__module__",
    "__annotations__",
    "__abstractmethods__",
}


def _unnumbered(value: Any) -> Any:
    """Hooks without their keys, which count all hooks of the process."""
    hooks = isinstance(value, OrderedDict) and all(isinstance(key, int) for key in value)
    return list(value.values()) if hooks else value


def _content(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).digest()
