"""Masked convolutions that the tests of it share: masks, operands, and the definition, word for word."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

import pixelfast as pf
from pixelfast import masked_conv
from pixelfast.models.base import colour_mask

OP = torch.ops.pixelfast.masked_conv2d.default
INPUTS, OUTPUTS = 3, 6


def raster(rows: int, columns: int, centre: bool | Tensor) -> Tensor:
    """A mask of the taps before the centre, and of the centre as it says: bool, of the kernel or of the weight."""
    mask = torch.ones(OUTPUTS, INPUTS, rows, columns, dtype=torch.bool)
    mask[..., rows // 2, columns // 2 :] = False
    mask[..., rows // 2 + 1 :, :] = False
    mask[..., rows // 2, columns // 2] = centre
    return mask if isinstance(centre, Tensor) else mask[0, 0]


# name: (mask, kernel, padding, what is left of the kernel)
MASKS = {
    "none": (None, (2, 3), (1, 1, 1, 0), (2, 3)),
    "A 7x7": (raster(7, 7, False), (7, 7), (3, 3, 3, 3), (4, 7)),
    "B 3x3": (raster(3, 3, True), (3, 3), (1, 1, 1, 1), (2, 3)),
    "colours 3x3": (
        raster(3, 3, colour_mask(6, 3, 3, strict=False)[..., 0, 0]),
        (3, 3),
        (1, 1, 1, 1),
        (2, 3),
    ),
    "colours 1x1": (colour_mask(6, 3, 3, strict=True), (1, 1), (0, 0, 0, 0), (1, 1)),
    "a pixel's colours over 3x3": (colour_mask(6, 3, 3, strict=False), (3, 3), (1, 1, 1, 1), (3, 3)),
    "rows above": (torch.tensor([1, 1, 0, 0, 0]).bool()[:, None], (5, 3), (1, 1, 2, 2), (2, 3)),
    "row above, far": (torch.tensor([1, 0, 0, 0, 0, 0, 0]).bool()[:, None], (7, 1), (0, 0, 3, 3), (1, 1)),
    "columns to the left": (torch.tensor([1, 1, 0, 0, 0]).bool(), (1, 5), (2, 2, 0, 0), (1, 2)),
    "columns to the right": (torch.tensor([0, 0, 0, 0, 1]).bool(), (1, 5), (2, 2, 0, 0), (1, 1)),
    "cropped": (None, (1, 3), (3, -1, 1, -1), (1, 3)),
    "nothing": (torch.zeros(3, 3, dtype=torch.bool), (3, 3), (1, 1, 1, 1), (1, 1)),
}
SIZES = [(1, 1), (1, 5), (4, 1), (5, 7)]


def arguments(
    kernel: tuple[int, int],
    size: tuple[int, int],
    padding: tuple[int, ...],
    *,
    gate: bool = False,
    condition: str = "",
    residual: bool = False,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    batch: int = 2,
) -> list[Tensor | None]:
    """x, weight, bias, condition and residual that fit, all to be differentiated."""
    generator = torch.Generator().manual_seed(0)
    height, width = masked_conv._output_size(size, kernel, padding)
    shapes = (
        (batch, INPUTS, *size),
        (OUTPUTS, INPUTS, *kernel),
        (OUTPUTS,) if bias else None,
        {"": None, "image": (batch, OUTPUTS), "position": (batch, OUTPUTS, height, width)}[condition],
        (batch, OUTPUTS // 2 if gate else OUTPUTS, height, width) if residual else None,
    )
    return [
        None if s is None else torch.randn(s, generator=generator, dtype=dtype).requires_grad_()
        for s in shapes
    ]


def plain(x, weight, bias, condition, residual, *, mask, padding, gate):
    """The definition, word for word."""
    live = weight if mask is None else torch.where(mask, weight, 0.0)
    height, width = x.shape[2:]
    around = F.pad(x, (9, 9, 9, 9))
    left, right, top, bottom = padding
    y = F.conv2d(around[:, :, 9 - top : 9 + height + bottom, 9 - left : 9 + width + right], live, bias)
    if condition is not None:
        y = y + (condition if condition.ndim == 4 else condition[:, :, None, None])
    if gate:
        a, b = y.chunk(2, 1)
        y = torch.tanh(a) * torch.sigmoid(b)
    return y if residual is None else y + residual


def fused(x, weight, bias, condition, residual, *, mask, **options):
    options.setdefault("taps", None if mask is None else pf.live_taps(mask, tuple(weight.shape[2:])))
    return pf.masked_conv2d(x, weight, bias, mask=mask, condition=condition, residual=residual, **options)


def gradients(y: Tensor, given: list[Tensor | None]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return list(torch.autograd.grad((y * weights).sum(), [t for t in given if t is not None]))


EPILOGUES = [
    {},
    {"gate": True},
    {"condition": "image"},
    {"condition": "position", "residual": True},
    {"condition": "image", "gate": True, "residual": True},
    {"condition": "position", "gate": True, "bias": False},
]


def titled(epilogue: dict) -> str:
    return " ".join(f"{k}={v}" for k, v in epilogue.items()) or "bare"
