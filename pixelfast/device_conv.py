"""The ops of masked_conv.py by the kernels of csrc/cuda/conv.h: on a GPU, or on its emulation.

A kernel is told addresses and strides, so that tensors of any layout are read and written where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import masked_conv as twin

TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
NOTHING = (0, (0, 0, 0, 0))
MOST = 2**31 - 1  # blocks of a launch, and what a size may be
LEAST_OF_A_BLOCK = 64  # positions times outputs, where there are so many


class Kernels:
    """The three ops, by an extension module: `pixelfast._cuda` or `pixelfast._emulated`.

    What the kernels have no room for goes to the twin.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        padding: Sequence[int],
        taps: Sequence[int],
        condition: Tensor | None,
        gate: bool,
        residual: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """As `pixelfast::masked_conv2d`."""
        twin._check([x, weight, bias, condition, residual], mask, padding, None, gate)
        outputs, _, *kernel = weight.shape
        twin._check_taps(taps, kernel[0] * kernel[1])
        size = twin._output_size(x.shape[2:], kernel, padding)
        places = places_of(taps, kernel[1], padding)
        shape = shape_of(x, outputs, size, kernel, places)
        if not self.fits(shape):
            return twin._forward(x, weight, bias, mask, padding, taps, condition, gate, residual)
        bias = None if bias is None else bias.contiguous()
        out, factors = twin._forward_fake(x, weight, bias, mask, padding, taps, condition, gate, residual)
        per_position = (
            None if condition is None else twin._per_position(condition).expand(x.shape[0], outputs, *size)
        )
        packed = room(x, self.module.masked_conv_nbytes(**shape, gate=gate))
        self.module.masked_conv(
            **shape,
            input=told(x),
            weight=told(weight),
            mask=told(None if mask is None else mask.expand_as(weight)),
            bias=(0 if bias is None else bias.data_ptr(),),
            condition=told(per_position),
            residual=told(residual),
            factors=told(factors if gate else None),
            out=told(out),
            packed=(packed.data_ptr(), packed.nbytes),
            gate=gate,
            stream=stream_of(x),
        )
        return out, factors

    def input_grad(
        self,
        grad: Tensor,
        weight: Tensor,
        mask: Tensor | None,
        size: Sequence[int],
        padding: Sequence[int],
        taps: Sequence[int],
    ) -> Tensor:
        """As `pixelfast::masked_conv2d_input_grad`: a convolution with the taps turned round."""
        outputs, inputs, *kernel = weight.shape
        result = grad.shape[0], outputs, *twin._output_size(size, kernel, padding)
        check_gradient(grad, result, weight, mask, weight.shape, taps)
        places = [(padding[2] - y, padding[0] - x, y, x) for y, x in (divmod(t, kernel[1]) for t in taps)]
        shape = shape_of(grad, inputs, size, kernel, places)
        if not self.fits(shape):
            return twin._input_grad(grad, weight, mask, size, padding, taps)
        out = twin._input_grad_fake(grad, weight, mask, size, padding, taps)
        packed = room(grad, self.module.masked_conv_nbytes(**shape, gate=False))
        self.module.masked_conv(
            **shape,
            input=told(grad),
            weight=told(weight.transpose(0, 1)),
            mask=told(None if mask is None else mask.expand_as(weight).transpose(0, 1)),
            bias=(0,),
            condition=NOTHING,
            residual=NOTHING,
            factors=NOTHING,
            out=told(out),
            packed=(packed.data_ptr(), packed.nbytes),
            gate=False,
            stream=stream_of(grad),
        )
        return out

    def weight_grad(
        self,
        grad: Tensor,
        x: Tensor,
        mask: Tensor | None,
        kernel: Sequence[int],
        padding: Sequence[int],
        taps: Sequence[int],
        bias: bool,
    ) -> tuple[Tensor, Tensor]:
        """As `pixelfast::masked_conv2d_weight_grad`: parts of the sums over positions, then those in order."""
        size, outputs = twin._output_size(x.shape[2:], kernel, padding), grad.shape[1]
        check_gradient(grad, (x.shape[0], outputs, *size), x, mask, (outputs, x.shape[1], *kernel), taps)
        places = places_of(taps, kernel[1], padding)
        shape = shape_of(x, outputs, size, kernel, places)
        if not self.fits(shape):
            return twin._weight_grad(grad, x, mask, kernel, padding, taps, bias)
        found, of_bias = twin._weight_grad_fake(grad, x, mask, kernel, padding, taps, bias)
        found.zero_()
        parts = room(x, self.module.masked_conv_weight_grad_nbytes(**shape))
        self.module.masked_conv_weight_grad(
            **shape,
            grad=told(grad),
            input=told(x),
            mask=told(None if mask is None else mask.expand_as(found)),
            weight=told(found),
            bias=(of_bias.data_ptr() if bias else 0,),
            parts=(parts.data_ptr(), parts.nbytes),
            stream=stream_of(x),
        )
        return found, of_bias

    def fits(self, shape: dict[str, Any]) -> bool:
        """Whether the kernels have the type, and room for the taps, the sides and the positions."""
        batch, _, outputs, height, width, _, in_width = sizes = shape["sizes"]
        reach = max((max(abs(y), abs(x)) for y, x, _, _ in shape["taps"]), default=0)
        few = (
            max(sizes) <= MOST and batch * height * max(width, in_width) * outputs <= MOST * LEAST_OF_A_BLOCK
        )
        sides = max(*sizes[3:], *shape["kernel"], reach) <= self.module.most_side
        return (
            shape["type"] in TYPES.values() and len(shape["taps"]) <= self.module.most_taps and sides and few
        )

    def register(self, library: torch.library.Library, key: str) -> None:
        """Make these what the ops are on the devices of a dispatch key, for as long as the library lives.

        `library`: of the namespace "pixelfast" and the kind "IMPL".
        """
        library.impl("masked_conv2d", self.forward, key)
        library.impl("masked_conv2d_input_grad", self.input_grad, key)
        library.impl("masked_conv2d_weight_grad", self.weight_grad, key)


def check_gradient(
    grad: Tensor,
    result: Sequence[int],
    other: Tensor,
    mask: Tensor | None,
    weight: Sequence[int],
    taps: Sequence[int],
) -> None:
    """Raise ValueError for operands of a gradient that do not fit.

    `result`, `weight`: shapes of the convolution's. `other`: the other operand, with four axes.
    """
    where = "[masked_conv2d]"
    if other.ndim != 4 or tuple(grad.shape) != tuple(result) or min(result[2:]) < 1:
        raise ValueError(f"{where} grad must be {tuple(result)}, got {tuple(grad.shape)}")
    if grad.dtype != other.dtype or grad.device != other.device:
        raise ValueError(
            f"{where} grad must be {other.dtype} on {other.device}, got {grad.dtype} on {grad.device}"
        )
    if mask is not None:
        twin._check_mask("masked_conv2d", mask, tuple(weight))
        if mask.device != other.device:
            raise ValueError(f"{where} mask must be on {other.device}, got {mask.device}")
    twin._check_taps(taps, weight[2] * weight[3])


def told(t: Tensor | None) -> tuple[int, tuple[int, ...]]:
    """What a kernel is told of a tensor of four axes."""
    return NOTHING if t is None else (t.data_ptr(), tuple(t.stride()))


def places_of(taps: Sequence[int], columns: int, padding: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Where taps read, from the position of a result, and where they are in a kernel: rows, then columns."""
    return [(y - padding[2], x - padding[0], y, x) for y, x in (divmod(t, columns) for t in taps)]


def shape_of(
    x: Tensor, outputs: int, result: Sequence[int], kernel: Sequence[int], taps: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """What a kernel is told of a convolution of x: type, sizes, taps and device. `result`: its (H, W)."""
    return {
        "type": TYPES.get(x.dtype, -1),
        "sizes": [x.shape[0], x.shape[1], outputs, *result, *x.shape[2:]],
        "kernel": list(kernel),
        "taps": taps,
        "device": x.device.index or 0,
    }


def room(x: Tensor, nbytes: int) -> Tensor:
    """Memory for a launch, where x is."""
    return x.new_empty(nbytes, dtype=torch.uint8)


def stream_of(t: Tensor) -> int:
    """The stream that is current on a tensor's device."""
    return torch.cuda.current_stream(t.device).cuda_stream if t.device.type == "cuda" else 0
