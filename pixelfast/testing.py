"""For the tests of other people's models."""

from __future__ import annotations

from typing import Any

from torch import nn

from ._audit import first_leak
from ._audit.report import leak as sentence


def assert_causal(module: nn.Module, shape: tuple[int, int, int], **options: Any) -> None:
    """Assert that every distribution depends on earlier pixels, and on earlier colours of its own pixel, alone.

    Read off the weights that are not zero, where the model can be planned; otherwise as far as measured, by changing
    one pixel at a time. The module is left untouched.

    **Arguments:** `shape`: (C, H, W) of an image. `options`: `head`, `to_input`, `conditions`, `output` and `seconds`,
    as for `pixelfast.audit`.

    Raises `AssertionError`, which names the pixels of the first leak, and the module and the tap where they are known;
    `ValueError` for bad arguments.
    """
    leak = first_leak(module, shape, **options)
    if leak is not None:
        raise AssertionError(f"{type(module).__name__} is not causal: {sentence(leak, shape[0])}")
