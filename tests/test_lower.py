"""Every lowering rule, in small modules, against PyTorch. Many cases share one capture."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from parts import CLASSES, HEIGHT, WIDTH, Parts, evaluate, param, part_of
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import scorer

import pixelfast as pf


@functools.cache
def evaluated(family: str) -> tuple[Parts, dict[str, Tensor], np.ndarray]:
    """The module of a family, what PyTorch makes of its parts in float64, and the engine's parameters."""
    module = Parts(*FAMILIES[family])
    return module, *evaluate(module)


def cases(*families: str) -> list:
    return [(family, name) for family in families for name in FAMILIES[family][0]]


Part = Callable[..., Tensor]
UNARY: dict[str, Part] = {
    "neg": lambda m, h, i: -h,
    "abs": lambda m, h, i: h.abs(),
    "sqrt": lambda m, h, i: (h.abs() + 0.5).sqrt(),
    "exp": lambda m, h, i: h.exp(),
    "log": lambda m, h, i: (h.abs() + 0.5).log(),
    "tanh": lambda m, h, i: h.tanh(),
    "sigmoid": lambda m, h, i: h.sigmoid(),
    "relu": lambda m, h, i: h.relu(),
    "relu in place": lambda m, h, i: F.relu(h.clone(), inplace=True),
    "elu": lambda m, h, i: F.elu(h),
    "leaky_relu": lambda m, h, i: F.leaky_relu(h),
    "leaky_relu 0.3": lambda m, h, i: F.leaky_relu(h, 0.3),
    "leaky_relu 1.5": lambda m, h, i: F.leaky_relu(h, 1.5),
    "leaky_relu -0.5": lambda m, h, i: F.leaky_relu(h, -0.5),
    "silu": lambda m, h, i: F.silu(h),
    "clamp": lambda m, h, i: h.clamp(-0.5, 0.7),
    "clamp below": lambda m, h, i: h.clamp(min=-0.2),
    "clamp above": lambda m, h, i: torch.clamp(h, max=0.3),
    "hardtanh": lambda m, h, i: F.hardtanh(h * 3),
    "hardtanh -2 0.5": lambda m, h, i: F.hardtanh(h, -2, 0.5),
    "hardtanh by default": lambda m, h, i: torch.ops.aten.hardtanh(h * 3),
    "relu6": lambda m, h, i: F.relu6(h * 9),
    "relu6 module": lambda m, h, i: nn.ReLU6()(h * 9),
    "rsub": lambda m, h, i: 1.5 - h,
    "rsub alpha": lambda m, h, i: torch.rsub(h, 2.0, alpha=3),
    "reciprocal": lambda m, h, i: 1 / (h.abs() + 0.5),
    "square": lambda m, h, i: h * h,
    "softmax": lambda m, h, i: (3 * h).softmax(1),
    "softmax of three": lambda m, h, i: torch.softmax(h.permute(0, 2, 3, 1)[..., :3], -1).permute(0, 3, 1, 2),
    "softmax of groups": lambda m, h, i: h.view(-1, 2, 2, *h.shape[2:]).softmax(2).flatten(1, 2),
    "log_softmax": lambda m, h, i: (9 * h).log_softmax(1),
    "flattened": lambda m, h, i: h.flatten(2).tanh().view(h.shape),
    "positions last": lambda m, h, i: (
        (h.flatten(2).transpose(1, 2) + param(12, 4)).transpose(1, 2).view(h.shape)
    ),
    "rows of a matrix": lambda m, h, i: (
        (h.permute(0, 2, 3, 1).reshape(-1, 4) @ param(4, 4).to(h.dtype)).view(-1, 3, 4, 4).permute(0, 3, 1, 2)
    ),
    "colours in between": lambda m, h, i: (
        ((h.permute(0, 2, 3, 1).unflatten(3, (2, 2)).flatten(1, 3) * param(24, 2)).view(-1, 3, 4, 2, 2))
        .permute(0, 3, 4, 1, 2)
        .flatten(1, 2)
    ),
    "pairs of positions": lambda m, h, i: h.flatten(2).unflatten(2, (6, 2)).tanh().flatten(2).view(h.shape),
    "batch merged": lambda m, h, i: (h.flatten(0, 1).tanh() * param(3, 4)).view(h.shape),
    "round": lambda m, h, i: (h * 9).round(),
    "round halves": lambda m, h, i: i.float().expand_as(h).sub(2).div(2).round() + 0 * h,
    "floor": lambda m, h, i: (h * 9).floor(),
    "floor of integers": lambda m, h, i: (h * 9).round().floor(),
    "ceil": lambda m, h, i: (h * 9).ceil(),
    "trunc": lambda m, h, i: (h * 9).trunc(),
    "trunc of large numbers": lambda m, h, i: ((h * 1e3).trunc() * 2.0**30).trunc(),
    "integers": lambda m, h, i: (h * 9).long().add(1).to(h.dtype),
    "masked rows, flattened": lambda m, h, i: (
        h.masked_fill(torch.tensor([True, False, False]).view(3, 1), 0).flatten(2).tanh().view(h.shape)
    ),
    "cropped rows, flattened": lambda m, h, i: (
        F.pad(h[:, :, :2], (0, 0, 0, 1)).flatten(2).tanh().view(h.shape)
    ),
    "same": lambda m, h, i: h.clone().contiguous().detach().to(h.dtype),
}
BINARY: dict[str, Part] = {
    "add": lambda m, h, i: h + h.tanh(),
    "add alpha": lambda m, h, i: torch.add(h, h.tanh(), alpha=-0.5),
    "add in place": lambda m, h, i: h.clone().add_(h.tanh()),
    "sub": lambda m, h, i: h - h.tanh(),
    "sub alpha": lambda m, h, i: torch.sub(h, h.tanh(), alpha=2),
    "sub in place": lambda m, h, i: h.clone().sub_(h.tanh()),
    "mul": lambda m, h, i: h * h.tanh(),
    "mul in place": lambda m, h, i: h.clone().mul_(h.tanh()),
    "div": lambda m, h, i: h / (h.abs() + 0.3),
    "div in place": lambda m, h, i: h.clone().div_(h.abs() + 0.3),
    "minimum": lambda m, h, i: torch.minimum(h, h.tanh() * 1.3),
    "maximum": lambda m, h, i: torch.maximum(h, h.tanh() * 1.3),
    "scalars": lambda m, h, i: (2 - (h + 1) * 3) / 4,
    "a tensor of one": lambda m, h, i: h * param(1) + param(1, 1, 1),
    "one channel with four": lambda m, h, i: h[:, :1] * h.tanh(),
    "four channels with one": lambda m, h, i: h.tanh() / (2 + h[:, 1:2].sigmoid()),
    "itself": lambda m, h, i: h + h,
    "rsub of maps": lambda m, h, i: torch.rsub(h, h.tanh(), alpha=0.5),
}


def _scaled_and_shifted(shape: tuple[int, ...], module: nn.Module, h: Tensor, images: Tensor) -> Tensor:
    return h * param(*shape) + param(*shape)


CONSTANTS: dict[str, Part] = {
    str(shape): functools.partial(_scaled_and_shifted, shape)
    for shape in [
        (4, 1, 1), (1, 4, 1, 1), (HEIGHT, WIDTH), (HEIGHT, 1), (WIDTH,), (1, WIDTH), (1, HEIGHT, WIDTH),
        (4, HEIGHT, WIDTH), (4, 1, WIDTH), (1, 4, HEIGHT, 1),
    ]
} | {
    "more channels": lambda m, h, i: h[:, :1] * param(5, 1, 1),
    "more channels by position": lambda m, h, i: h[:, :1] - param(3, HEIGHT, WIDTH),
    "more channels than levels": lambda m, h, i: (i.to(h.dtype) + param(5, 1, 1)).tanh(),
    "on a wider grid": lambda m, h, i: (F.pad(h, (2, 1, 1, 0)) + param(HEIGHT + 1, WIDTH + 3))[:, :, 1:, 2:-1],
    "a channel on a wider grid": lambda m, h, i: (F.pad(h, (2, 0)) + param(4, 1, 1))[:, :, :, 1:-1],
    "per image, but equal": lambda m, h, i: h + param(4, 1, 1).expand(h.shape[0], -1, -1, -1),
    "cat": lambda m, h, i: torch.cat([h, param(1, 2, HEIGHT, WIDTH).to(h.dtype).expand(h.shape[0], -1, -1, -1)], 1),
    "cat of ones": lambda m, h, i: torch.cat([torch.ones_like(h[:, :1]), h], 1),
    "cat of channels": lambda m, h, i: torch.cat(
        [param(1, 2, 1, 1).to(h.dtype).expand(h.shape[0], -1, HEIGHT, WIDTH), h], 1
    ),
    "cat in the middle": lambda m, h, i: torch.cat([h, torch.zeros_like(h), h.tanh()], 1),
}  # fmt: skip
TABLES: dict[str, Part] = {
    "levels": lambda m, h, i: i.to(h.dtype),
    "halves": lambda m, h, i: torch.div(i, 2, rounding_mode="floor").to(h.dtype),
    "remainder": lambda m, h, i: (i % 3).to(h.dtype),
    "comparison": lambda m, h, i: (i > 2).to(h.dtype),
    "where": lambda m, h, i: torch.where(i > 2, i * 2, -i).to(h.dtype),
    "log1p": lambda m, h, i: i.to(h.dtype).log1p(),
    "product": lambda m, h, i: i.to(h.dtype) * (i + 1).to(h.dtype).sqrt(),
    "of each colour": lambda m, h, i: (i.to(h.dtype) * param(2, 1, 1)).sin(),
    "of each position": lambda m, h, i: i.to(h.dtype) * param(HEIGHT, WIDTH),
    "with a map": lambda m, h, i: i.to(h.dtype) * h[:, :2],
    "convolved": lambda m, h, i: F.conv2d((i - 1).to(h.dtype), param(3, 2, 1, 3).to(h.dtype), padding=(0, 1)),
    "two tables": lambda m, h, i: torch.cat([i.to(h.dtype).cos(), i.to(h.dtype)], 1),
    "one colour": lambda m, h, i: i[:, 1:].to(h.dtype),
    "shifted": lambda m, h, i: F.pad(i.to(h.dtype) - 2, (1, -1)),
}
LAYOUT: dict[str, Part] = {
    "permute": lambda m, h, i: h.permute(0, 2, 3, 1).tanh().permute(0, 3, 1, 2),
    "transpose": lambda m, h, i: h.transpose(1, -1).tanh().transpose(3, 1),
    "positions swapped": lambda m, h, i: (h.transpose(2, 3).tanh() * param(WIDTH, HEIGHT)).transpose(2, 3),
    "split axes": lambda m, h, i: h.view(h.shape[0], 2, 2, *h.shape[2:])[:, :, 1].tanh(),
    "shuffle": lambda m, h, i: h.view(h.shape[0], 2, 2, *h.shape[2:]).transpose(1, 2).reshape(h.shape).tanh(),
    "axes of one": lambda m, h, i: h.view(h.shape[0], 1, 4, 1, *h.shape[2:])[:, 0, :, 0].tanh(),
    "merged": lambda m, h, i: torch.cat([h, -h], 1).view(-1, 2, 4, *h.shape[2:]).flatten(1, 2).tanh(),
    "last axis split": lambda m, h, i: (
        h.permute(0, 2, 3, 1).reshape(-1, *h.shape[2:], 2, 2)[..., 0].permute(0, 3, 1, 2)
    ),
    "unsqueeze": lambda m, h, i: (h.unsqueeze(1) * h.unsqueeze(2)).flatten(1, 2),
    "squeeze": lambda m, h, i: h[:, 1:2].squeeze(1).tanh().unsqueeze(1),
    "squeeze of several": lambda m, h, i: h.view(h.shape[0], 1, 4, 1, *h.shape[2:]).squeeze((1, 3)).tanh(),
    "squeeze of nothing": lambda m, h, i: h.squeeze(1).tanh(),
    "expand": lambda m, h, i: h[:, 2:3].expand(-1, 3, -1, -1).tanh(),
    "slice": lambda m, h, i: h[:, 1:3].tanh(),
    "slice with a step": lambda m, h, i: h[:, 1::2].tanh(),
    "negative slice": lambda m, h, i: h[:, -3:-1].tanh(),
    "slice of everything": lambda m, h, i: h[:, :, :, :].tanh(),
    "select": lambda m, h, i: h[:, 2].tanh().unsqueeze(1),
    "negative select": lambda m, h, i: h.select(1, -1).tanh()[:, None],
    "split": lambda m, h, i: h.split(3, 1)[1].tanh(),
    "split sizes": lambda m, h, i: h.split([1, 2, 1], 1)[1].tanh(),
    "chunk": lambda m, h, i: torch.cat(h.chunk(2, 1)[::-1], 1).tanh(),
    "chunk of the last axis": lambda m, h, i: (
        h.permute(0, 2, 3, 1).chunk(2, -1)[1].permute(0, 3, 1, 2).tanh()
    ),
    "cat": lambda m, h, i: torch.cat([h[:, 1:], h.tanh(), h[:, :1]], 1),
    "cat of the last axis": lambda m, h, i: torch.cat(
        [h.permute(0, 2, 3, 1), h.tanh().permute(0, 2, 3, 1)], -1
    ).permute(0, 3, 1, 2),
    "cat, then a product": lambda m, h, i: F.conv2d(torch.cat([h, h], 1), param(3, 8, 1, 1).to(h.dtype)),
    "pad channels": lambda m, h, i: F.pad(h, (0, 0, 0, 0, 1, 2)).sigmoid(),
    "crop channels": lambda m, h, i: F.pad(h, (0, 0, 0, 0, -1, -2)).tanh(),
    "move channels": lambda m, h, i: F.pad(h, (0, 0, 0, 0, 2, -2)).exp(),
}
POSITIONS: dict[str, Part] = {
    "right": lambda m, h, i: F.pad(h, (1, -1)),
    "down": lambda m, h, i: F.pad(h, (0, 0, 1, -1)),
    "left and up": lambda m, h, i: F.pad(h, (-1, 1, -2, 2)),
    "there and back": lambda m, h, i: F.pad(F.pad(h, (1, -1)), (-1, 1)),
    "crop, then pad, on the right": lambda m, h, i: F.pad(h[..., :-1], (0, 1)),
    "crop, then pad, on the left": lambda m, h, i: F.pad(h[..., 1:], (1, 0)),
    "crop, then pad, above": lambda m, h, i: F.pad(F.pad(h, (0, 0, -1, 0)), (0, 0, 1, 0)),
    "crop, then pad, below": lambda m, h, i: F.pad(h[:, :, :-1], (0, 0, 0, 1)),
    "crop, then pad, around": lambda m, h, i: F.pad(h[:, :, 1:-1, 1:-1], (1, 1, 1, 1)),
    "pad, then crop": lambda m, h, i: F.pad(h, (2, 1, 1, 2))[:, :, 1:-2, 2:-1],
    "pad, then crop elsewhere": lambda m, h, i: F.pad(h, (2, 1, 1, 2))[:, :, :HEIGHT, :WIDTH],
    "all cropped": lambda m, h, i: F.pad(h[..., :0], (WIDTH, 0)),
    "padded by values of its own": lambda m, h, i: F.pad(h, (1, 0)).exp()[..., :-1],
    "crop, then a product that looks outside": lambda m, h, i: F.conv2d(
        h[..., :-1, 1:], param(2, 4, 2, 2).to(h.dtype), padding=1
    ),
    "pad, then a product that looks further": lambda m, h, i: F.conv2d(
        F.pad(h, (1, -1)), param(2, 4, 3, 3).to(h.dtype), padding=1
    ),
    "sum of shifts": lambda m, h, i: F.pad(h, (1, -1)) + F.pad(h, (0, 0, 1, -1)) * h,
    "cat of shifts": lambda m, h, i: torch.cat([F.pad(h, (1, -1)), h, F.pad(h, (0, 0, -1, 1))], 1),
    "cat of equal shifts": lambda m, h, i: torch.cat([F.pad(h, (1, -1)), F.pad(h.tanh(), (1, -1))], 1),
    "cat of grids, then a product": lambda m, h, i: F.conv2d(
        torch.cat([F.pad(F.conv2d(h, param(3, 4, 1, 2).to(h.dtype)), (1, 0)), F.pad(h, (1, -1))], 1),
        param(2, 7, 3, 3).to(h.dtype),
        padding=1,
    ),
    "a product of what is only zeros": lambda m, h, i: F.conv2d(
        F.pad(h[:, :0], (0, 0, 0, 0, 0, 2)), param(2, 2, 1, 1).to(h.dtype), param(2).to(h.dtype)
    ),
    "permuted, then shifted": lambda m, h, i: F.pad(h.permute(0, 2, 3, 1), (0, 0, 1, -1)).permute(0, 3, 1, 2),
}


def conv(
    h: Tensor, outputs: int, kernel: tuple[int, int], groups: int = 1, bias: bool = True, **options
) -> Tensor:
    weight = param(outputs, h.shape[1] // groups, *kernel).to(h.dtype)
    return F.conv2d(h, weight, param(outputs).to(h.dtype) if bias else None, groups=groups, **options)


def conv_same(h: Tensor) -> Tensor:
    """Padded by more on the right and below, which PyTorch warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return conv(h, 2, (2, 4), padding="same")


PRODUCTS: dict[str, Part] = {
    "1x1": lambda m, h, i: conv(h, 3, (1, 1)),
    "no bias": lambda m, h, i: conv(h, 3, (1, 1), bias=False),
    "3x3": lambda m, h, i: conv(h, 3, (3, 3), padding=1),
    "5x3": lambda m, h, i: conv(h, 2, (5, 3), padding=(2, 1)),
    "dilation": lambda m, h, i: conv(h, 2, (3, 3), padding=2, dilation=2),
    "dilations": lambda m, h, i: conv(h, 2, (2, 3), padding=(1, 3), dilation=(2, 3)),
    "groups": lambda m, h, i: conv(h, 6, (3, 3), groups=2, padding=1),
    "depthwise": lambda m, h, i: conv(h, 8, (1, 3), groups=4, padding=(0, 1)),
    "same": lambda m, h, i: conv(h, 2, (3, 5), padding="same"),
    "same, even, dilated": lambda m, h, i: conv(h, 2, (2, 3), padding="same", dilation=(2, 3)),
    "same, even columns, dilated": lambda m, h, i: conv(h, 2, (3, 2), padding="same", dilation=(3, 2)),
    "same, even": lambda m, h, i: conv_same(h),
    "valid": lambda m, h, i: conv(F.pad(h, (1, 1, 2, 0)), 2, (3, 3), padding="valid"),
    "stride": lambda m, h, i: conv(F.pad(h, (0, WIDTH, 0, HEIGHT)), 2, (2, 2), stride=2),
    "strides": lambda m, h, i: conv(
        F.pad(h, (0, 0, 0, 2 * HEIGHT)), 2, (3, 3), stride=(3, 1), padding=(0, 1)
    ),
    "stride of a shift": lambda m, h, i: conv(
        F.pad(h, (1, WIDTH - 1, 0, HEIGHT)), 2, (3, 3), stride=2, padding=1
    ),
    "module": lambda m, h, i: m.first(F.pad(h[:, :1], (1, 0))),
    "dead taps": lambda m, h, i: F.conv2d(
        h,
        param(2, 4, 3, 3).to(h.dtype) * torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]], dtype=h.dtype),
        padding=1,
    ),
    "no weights": lambda m, h, i: F.conv2d(
        h, torch.zeros(2, 4, 3, 3, dtype=h.dtype), param(2).to(h.dtype), padding=1
    ),
    "linear": lambda m, h, i: F.linear(
        h.permute(0, 2, 3, 1), param(3, 4).to(h.dtype), param(3).to(h.dtype)
    ).permute(0, 3, 1, 2),
    "linear without bias": lambda m, h, i: F.linear(h.movedim(1, -1), param(3, 4).to(h.dtype)).movedim(-1, 1),
    "linear of a shift": lambda m, h, i: F.linear(
        F.pad(h, (1, -1)).movedim(1, -1)[..., 1:], param(3, 3).to(h.dtype)
    ).movedim(-1, 1),
    "linear of a crop": lambda m, h, i: F.pad(
        F.linear(h[..., 1:].movedim(1, -1), param(3, 4).to(h.dtype)).movedim(-1, 1), (1, 0)
    ),
    "transposed": lambda m, h, i: F.conv_transpose2d(h, param(4, 2, 3, 3).to(h.dtype), padding=1),
    "transposed, stride": lambda m, h, i: F.conv_transpose2d(
        h[:, :, ::1, : WIDTH // 2],
        param(4, 2, 3, 2).to(h.dtype),
        param(2).to(h.dtype),
        stride=(1, 2),
        padding=(1, 0),
    ),
}
CONDITIONS: dict[str, Part] = {
    "add": lambda m, h, i, y: h + m.embed(y)[:, :, None, None],
    "again": lambda m, h, i, y: h * m.embed(y)[:, :, None, None],
    "gate": lambda m, h, i, y: h * torch.sigmoid(m.embed(y))[:, :, None, None],
    "on the left": lambda m, h, i, y: m.embed(y)[:, :, None, None] - h,
    "one number": lambda m, h, i, y: h * m.embed(y)[:, :1, None, None],
    "more channels": lambda m, h, i, y: h[:, 1:2] + m.embed(y)[:, :, None, None],
    "by position": lambda m, h, i, y: h + m.grid(y).view(-1, 4, HEIGHT, WIDTH),
    "by position, one channel": lambda m, h, i, y: h + m.grid(y).view(-1, 4, HEIGHT, WIDTH)[:, 2:3],
    "by row": lambda m, h, i, y: h + m.grid(y).view(-1, 4, HEIGHT, WIDTH)[..., 1:2],
    "by column": lambda m, h, i, y: h + m.grid(y).view(-1, 4, HEIGHT, WIDTH)[:, :, :1],
    "last axis": lambda m, h, i, y: (h.movedim(1, -1) + m.embed(y)[:, None, None, :]).movedim(-1, 1),
    "split axes": lambda m, h, i, y: (
        h.view(-1, 2, 2, HEIGHT, WIDTH) + m.embed(y).view(-1, 2, 2, 1, 1)
    ).flatten(1, 2),
    "cat": lambda m, h, i, y: torch.cat([h, m.grid(y).view(-1, 4, HEIGHT, WIDTH)], 1),
    "cat of channels": lambda m, h, i, y: torch.cat(
        [m.embed(y)[:, :, None, None].expand(-1, -1, HEIGHT, WIDTH), h], 1
    ),
    "on a wider grid": lambda m, h, i, y: conv(
        F.pad(h, (1, 1, 1, 1)) + m.embed(y)[:, :, None, None], 2, (3, 3)
    ),
    "on a narrower grid": lambda m, h, i, y: F.pad(h[..., 1:] + m.embed(y)[:, :, None, None], (0, 1)),
    "with levels": lambda m, h, i, y: i.to(h.dtype) * m.embed(y)[:, :, None, None],
    "the label itself": lambda m, h, i, y: h * y.to(h.dtype)[:, None, None, None],
    "of no consequence": lambda m, h, i, y: F.conv2d(
        h + m.embed(y).exp()[:, :, None, None], torch.zeros(1, 4, 1, 1, dtype=h.dtype)
    ),
}
FAMILIES = {
    "unary": (UNARY,),
    "binary": (BINARY,),
    "constants": (CONSTANTS,),
    "tables": (TABLES, 2),
    "layout": (LAYOUT,),
    "positions": (POSITIONS,),
    "products": (PRODUCTS,),
    "conditions": (CONDITIONS, 1, CLASSES),
}


@pytest.mark.parametrize(("family", "name"), cases(*FAMILIES))
def test_a_rule_computes_what_pytorch_computes(family, name):
    module, wanted, got = evaluated(family)
    part = part_of(module, name, got)
    np.testing.assert_allclose(part, wanted[name].numpy(), rtol=2e-5, atol=2e-5)
    assert np.abs(part).max() > 0 or name in ("all cropped", "of no consequence")


# --- what is not supported --------------------------------------------------------------------------------


def batch_of(h: Tensor) -> Tensor:
    return torch.arange(h.shape[0], dtype=h.dtype)[:, None, None, None]


ERRORS: dict[str, tuple[Part, str]] = {
    "no rule": (lambda m, h, i: h.asinh(), r"(?s)there is no rule for it\n  at .*\nsupported are abs, add, .*conv2d"),
    "no rule in a module": (lambda m, h, i: m.odd(h), r"asinh\.default of \(N, 4, 3, 4\) in module 'odd' \(asinh\)"),
    "rounding": (lambda m, h, i: torch.div(h, 2, rounding_mode="floor"), r"aten\.div\.Tensor_mode .* no rule"),
    "dtype": (lambda m, h, i: h.double().float(), r"float32, the model converts one to torch\.float64"),
    "batch merged": (
        lambda m, h, i: h.transpose(0, 1).flatten(0, 1).tanh().view(4, -1, 3, 4).transpose(0, 1),
        "mixes positions with channels",
    ),
    "expand repeats": (
        lambda m, h, i: h[:, :, :1].expand(-1, -1, HEIGHT, -1),
        r"it moves or repeats positions: planned \(2, 4, 1, 4\), got \(2, 4, 3, 4\)",
    ),
    "broadcast position": (
        lambda m, h, i: h[..., :1] + param(WIDTH).to(h.dtype),
        r"it moves or repeats positions: planned \(2, 4, 3, 1\), got \(2, 4, 3, 4\)",
    ),
    "slice of the batch": (lambda m, h, i: h[:1].expand(h.shape), "slices the batch"),
    "one image": (lambda m, h, i: h[0][None].expand(h.shape), "selects one entry of the n axis"),
    "reflection": (lambda m, h, i: F.pad(h, (1, 1, 0, 0), "reflect")[..., 1:-1], "pads with mode 'reflect': copies"),
    "padded batch": (lambda m, h, i: F.pad(h, (0, 0, 0, 0, 0, 0, 1, -1)), "pads the batch"),
    "weights from the image": (
        lambda m, h, i: F.conv2d(h, h[:, :, :1, :1]),
        "the weights depend on the image or on a condition",
    ),
    "product of a constant": (
        lambda m, h, i: F.conv2d(param(1, 4, HEIGHT, WIDTH).to(h.dtype), h[:, :, :1, :1]).view(-1, 1, HEIGHT, WIDTH),
        "expected a feature map, got Tensor",
    ),
    "batch of constants": (lambda m, h, i: h * batch_of(h), "a constant that differs between the images of a"),
    "constant of more axes": (
        lambda m, h, i: (h + param(1, 1, 4, 1, 1))[0],
        r"a tensor of shape \(1, 1, 4, 1, 1\) meets one of 4 axes",
    ),
    "layouts": (
        lambda m, h, i: F.pad(h[..., :HEIGHT] + h[..., :HEIGHT].transpose(2, 3), (0, 1)),
        r"operands of different layout: nc(yx|xy) .*, nc(yx|xy) ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_planned_is_refused(name):
    part, match = ERRORS[name]
    module = Parts({name: part})
    with pytest.raises(pf.LoweringError, match=match) as caught:
        scorer(module, module.shape)
    text = str(caught.value)
    assert text.startswith("[compile] cannot plan aten.")
    line = text.partition("\nsupported are")[0].splitlines()[-1]
    assert line.startswith("  at File")
    assert "parts.py" in line


def test_a_condition_of_other_axes_is_refused():
    part = lambda m, h, i, y: F.pad(h[:, :, :1] + m.embed(y)[:, :WIDTH], (0, 0, 0, HEIGHT - 1))[:, :, :HEIGHT]  # noqa: E731
    module = Parts({"rows": part}, classes=CLASSES)
    with pytest.raises(pf.LoweringError, match=r"a condition of shape \(2, 4\) meets a tensor of 4 axes"):
        scorer(module, module.shape)


def test_a_condition_in_place_of_weights_is_refused():
    module = Parts({"weights": lambda m, h, i, y: F.conv2d(h, m.embed(y)[:, :, None, None])}, classes=CLASSES)
    with pytest.raises(pf.LoweringError, match="the weights depend on the image or on a condition"):
        scorer(module, module.shape)


@pytest.mark.parametrize(
    ("head", "shape", "match"),
    [
        (
            pf.heads.Categorical(5),
            (1, HEIGHT, WIDTH),
            r"has shape \(N, 3, 4\)|\(N, 4, 3, 4\); the head Categorical",
        ),
        (pf.heads.Categorical(4), (2, HEIGHT, WIDTH), r"expects \(N, 4, 2, 3, 4\)"),
        (pf.heads.Bernoulli(), (1, HEIGHT, WIDTH), r"the head Bernoulli\(\) expects \(N, 1, 3, 4\)"),
    ],
)
def test_an_output_that_the_head_cannot_read_is_refused(head, shape, match):
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head
            self.conv = nn.Conv2d(shape[0], 4, 1)

        def forward(self, images):
            return self.conv(images.float())

    with pytest.raises(pf.LoweringError, match=match):
        scorer(Plain(), shape)
