"""The rules for what public models use besides convolutions, against PyTorch, in the manner of test_lower.py."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from parts import ALL, CLASSES, HEIGHT, WIDTH, Parts, evaluate, like, param, part_of, set_slice
from torch import Tensor, nn
from torch.nn import functional as F


def mask(*shape: int) -> Tensor:
    return param(*shape) > 0


FUNCTIONS = {
    "gelu": lambda m, h, i: F.gelu(h * 3),
    "gelu, far": lambda m, h, i: F.gelu(h * 99),
    "gelu, tanh": lambda m, h, i: F.gelu(h * 3, approximate="tanh"),
    "sin": lambda m, h, i: torch.sin(h * 9),
    "cos": lambda m, h, i: torch.cos(h * 9),
    "sin, far": lambda m, h, i: torch.sin(h.round() * 1000),
    "erf": lambda m, h, i: torch.erf(h),
    "hardswish": lambda m, h, i: F.hardswish(h * 3),
    "hardsigmoid": lambda m, h, i: F.hardsigmoid(h * 3),
    "mish": lambda m, h, i: F.mish(h * 3),
    "softsign": lambda m, h, i: F.softsign(h),
    "selu": lambda m, h, i: F.selu(h),
    "elu, alpha": lambda m, h, i: F.elu(h, 2.0),
    "elu, small alpha": lambda m, h, i: F.elu(h, 0.5),
    "elu, no alpha": lambda m, h, i: F.elu(h, 0.0),
    "elu, scale": lambda m, h, i: torch.ops.aten.elu(h, 2.0, -1.5) + torch.ops.aten.elu(h, 0.5, -1.5),
    "celu": lambda m, h, i: F.celu(h, 0.5),
    "rrelu": lambda m, h, i: F.rrelu(h, 0.1, 0.5),
    "log_sigmoid": lambda m, h, i: F.logsigmoid(h * 9),
    "softplus, beta": lambda m, h, i: F.softplus(h, 3),
    "tanhshrink": lambda m, h, i: F.tanhshrink(h),
    "softshrink": lambda m, h, i: F.softshrink(h),
    "hardshrink": lambda m, h, i: F.hardshrink(h),
    "threshold": lambda m, h, i: F.threshold(h, 0.1, 2.0),
    "square": lambda m, h, i: h.square(),
    "power 1": lambda m, h, i: h**1,
    "power 3": lambda m, h, i: h**3,
    "power 10": lambda m, h, i: h.tanh() ** 10,
    "power -2": lambda m, h, i: (h.abs() + 1) ** -2,
    "power 0": lambda m, h, i: h**0,
    "power 0.5": lambda m, h, i: (h.abs() + 1) ** 0.5,
    "power -0.5": lambda m, h, i: (h.abs() + 1) ** -0.5,
    "power 0.75": lambda m, h, i: h.abs() ** 0.75,
    "power of 3": lambda m, h, i: 3**h,
    "rsqrt": lambda m, h, i: (h.abs() + 1).rsqrt(),
    "expm1": lambda m, h, i: torch.expm1(h),
    "log1p": lambda m, h, i: h.abs().log1p(),
    "exp2": lambda m, h, i: h.exp2(),
    "log2": lambda m, h, i: (h.abs() + 1).log2(),
    "log10": lambda m, h, i: (h.abs() + 1).log10(),
    "logaddexp": lambda m, h, i: torch.logaddexp(h, -h),
    "sign": lambda m, h, i: torch.sign(h.relu()) - torch.sgn(h),
    "addcmul": lambda m, h, i: torch.addcmul(h, h, h.tanh(), value=0.5),
    "addcdiv": lambda m, h, i: torch.addcdiv(h, h, h.abs() + 1, value=0.5),
    "lerp": lambda m, h, i: torch.lerp(h, h.tanh(), 0.3),
    "lerp, tensor": lambda m, h, i: torch.lerp(h, h.tanh(), h.sigmoid()),
    "true_divide": lambda m, h, i: torch.true_divide(h, 3),
    "clamp_min": lambda m, h, i: h.clamp_min(0.1),
    "clamp_max": lambda m, h, i: h.clamp_max(0.1),
    "clamp, tensors": lambda m, h, i: h.clamp(like(h, 4, 1, 1) - 1, like(h, 4, 1, 1) + 1),
    "clamp, in place": lambda m, h, i: h.clone().clamp_(min=0),
    "maximum with a number": lambda m, h, i: torch.maximum(h, torch.tensor(0.2, dtype=h.dtype)),
    "dropouts": lambda m, h, i: (
        nn.Dropout2d().eval()(F.dropout(nn.AlphaDropout().eval()(h), training=False)).tanh()
    ),
}
MASKS = {
    "greater": lambda m, h, i: (h > 0.1).to(h.dtype) + 1,
    "less than another": lambda m, h, i: (h < h.flip(1)).type_as(h) + 1,
    "at least": lambda m, h, i: (i >= 2).to(h.dtype) + (h.round() >= 0).to(h.dtype),
    "at most": lambda m, h, i: 1.0 * (h.round() <= 0) + 1,
    "equal": lambda m, h, i: (h.round() == 0) * h + 1,
    "not equal": lambda m, h, i: (h.round() != 0).to(h.dtype) + 1,
    "and": lambda m, h, i: ((h > -0.5) & (h < 0.5)).to(h.dtype) + 1,
    "or": lambda m, h, i: ((h < -0.5) | (h > 0.5)).to(h.dtype) + 1,
    "xor": lambda m, h, i: ((h > -0.5) ^ (h > 0.5)).to(h.dtype) + 1,
    "not": lambda m, h, i: (~(h > 0)).to(h.dtype) + 1,
    "logical": lambda m, h, i: (
        torch.logical_or(torch.logical_and(h.round(), h > 0), torch.logical_not(h.relu())).to(h.dtype) + 1
    ),
    "bool": lambda m, h, i: h.round().bool().long().to(h.dtype) + 1,
    "where": lambda m, h, i: torch.where(h > 0, h.exp(), h * 3),
    "where, numbers": lambda m, h, i: torch.where(h > 0, 2.0, h),
    "where, infinite": lambda m, h, i: torch.where(h > 0, h, -torch.inf).exp() + 1,
    "where, not chosen infinite": lambda m, h, i: torch.where(h > 0, h, h.relu().log()).clamp(-9) + 1,
    "where, channels": lambda m, h, i: torch.where(mask(4, 1, 1), h.exp(), h),
    "where, positions": lambda m, h, i: torch.where(mask(HEIGHT, WIDTH), h.exp(), -2.0),
    "where of constants": lambda m, h, i: torch.where(h > 0, like(h, 4, 1, 1), like(h, 4, HEIGHT, 1)),
    "masked_fill": lambda m, h, i: h.masked_fill(mask(HEIGHT, WIDTH), 3.0),
    "masked_fill, channels": lambda m, h, i: h.masked_fill(mask(4, 1, 1), 0.0) + 1,
    "masked_fill, infinite": lambda m, h, i: h.masked_fill(mask(4, HEIGHT, WIDTH), -torch.inf).exp() + 1,
    "masked_fill of infinite": lambda m, h, i: (h.relu().log()).masked_fill(mask(4, 1, 1), 0.0).exp() + 1,
    "masked_fill by the image": lambda m, h, i: h.masked_fill(h > 0, 0.5),
    "masked_fill in place": lambda m, h, i: h.clone().masked_fill_(mask(HEIGHT, 1), 1.0),
    "set where": lambda m, h, i: set_where(h, mask(1, 4, HEIGHT, WIDTH).expand(h.shape)),
    "mul": lambda m, h, i: h * mask(HEIGHT, WIDTH).to(h.dtype) + 1,
    "mul, rectangle": lambda m, h, i: (
        h * F.pad(torch.ones(HEIGHT - 1, WIDTH - 1), (1, 0, 1, 0)).to(h.dtype) + 1
    ),
    "mul, two rectangles": lambda m, h, i: (
        h.exp() * (torch.arange(HEIGHT * WIDTH) > 0).view(HEIGHT, WIDTH).to(h.dtype)
    ),
    "mul, nothing": lambda m, h, i: h * torch.zeros(4, 1, 1, dtype=h.dtype) + 1,
    "mul, channels": lambda m, h, i: h[:, :1] * mask(5, 1, 1).to(h.dtype) + 1,
    "mul, transposed": lambda m, h, i: (
        (h.transpose(2, 3) * F.pad(torch.ones(2, 2), (1, 0, 1, 1)).to(h.dtype)).transpose(2, 3) + 1
    ),
    "mul, sequence": lambda m, h, i: (
        (h.flatten(2).transpose(1, 2) * (torch.arange(12) > 0)[:, None].to(h.dtype)).transpose(1, 2)
    ).view(h.shape),
    "mul, each channel": lambda m, h, i: (
        h.exp() * torch.stack([torch.ones(3, 4).tril(k).to(h.dtype) for k in (-2, -1, 0, 3)])
    ),
    "mul, more channels": lambda m, h, i: (
        (h[:, 1:2].mT.exp() * torch.stack([torch.ones(4, 3).triu(k).to(h.dtype) for k in (2, 1, 5)])).mT + 1
    ),
    "mul, shifted": lambda m, h, i: (
        F.pad(h, (1, -1)).exp() * F.pad(torch.ones(2, 3), (0, 1, 0, 1)).to(h.dtype) + 1
    ),
    "any": lambda m, h, i: (
        (h > 0.5).any(1, keepdim=True).to(h.dtype) + h.round().all(1, keepdim=True).to(h.dtype) + 1
    ),
    "levels": lambda m, h, i: (i == 1).to(h.dtype) + torch.fmod(i, 2) + torch.remainder(i, 3) + 1,
}
REDUCTIONS = {
    "layer_norm": lambda m, h, i: F.layer_norm(h.movedim(1, -1), (4,), like(h, 4), like(h, 4)).movedim(-1, 1),
    "layer_norm of a sequence": lambda m, h, i: (
        F.layer_norm(h.flatten(2).transpose(1, 2), (4,)).transpose(1, 2).view(h.shape)
    ),
    "layer_norm of two axes": lambda m, h, i: (
        F.layer_norm(h.movedim(1, -1).unflatten(3, (2, 2)), (2, 2), like(h, 2, 2), None)
        .flatten(3)
        .movedim(-1, 1)
    ),
    "layer_norm of heads": lambda m, h, i: (
        F.layer_norm(h.movedim(1, -1).unflatten(3, (2, 2)), (2,)).flatten(3).movedim(-1, 1) + h
    ),
    "layer_norm, spelled": lambda m, h, i: (
        (h - h.mean(1, keepdim=True))
        / (h.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        * like(h, 4, 1, 1)
    ),
    "rms_norm": lambda m, h, i: F.rms_norm(h.movedim(1, -1), (4,), like(h, 4), 1e-3).movedim(-1, 1),
    "rms_norm, spelled": lambda m, h, i: h * torch.rsqrt(h.pow(2).mean(1, keepdim=True) + 1e-6),
    "normalize": lambda m, h, i: F.normalize(h, dim=1),
    "normalize, sum": lambda m, h, i: F.normalize(h, p=1, dim=1),
    "normalize, largest": lambda m, h, i: F.normalize(h, p=math.inf, dim=1),
    "group_norm of rows": lambda m, h, i: (
        F.group_norm(h.movedim(1, -1).reshape(-1, 4), 2, like(h, 4), like(h, 4))
        .view(-1, 3, 4, 4)
        .movedim(-1, 1)
        + h
    ),
    "instance_norm, by statistics": lambda m, h, i: F.instance_norm(
        h, like(h, 4), like(h, 4).abs(), like(h, 4), like(h, 4), use_input_stats=False
    ),
    "mean": lambda m, h, i: h.mean(1, keepdim=True),
    "mean of halves": lambda m, h, i: h.unflatten(1, (2, 2)).mean(1),
    "mean of the last": lambda m, h, i: h.movedim(1, -1).mean(-1)[:, None],
    "sum": lambda m, h, i: h.sum(1)[:, None],
    "sum of two axes": lambda m, h, i: h.unflatten(1, (2, 2)).sum((1, 2))[:, None],
    "sum of a shift": lambda m, h, i: F.pad(h, (1, -1)).sum(1, keepdim=True),
    "var": lambda m, h, i: h.var(1, keepdim=True),
    "var, correction": lambda m, h, i: torch.var(h, 1, correction=0)[:, None],
    "std": lambda m, h, i: h.std(1)[:, None],
    "var_mean": lambda m, h, i: torch.cat(torch.var_mean(h, 1, keepdim=True), 1),
    "amax": lambda m, h, i: h.amax(1)[:, None],
    "amin": lambda m, h, i: h[:, :3].amin(1, keepdim=True),
    "max": lambda m, h, i: h.max(1, keepdim=True).values + h.min(1, keepdim=True)[0],
    "prod": lambda m, h, i: h.prod(1, keepdim=True),
    "norm": lambda m, h, i: h.norm(dim=1, keepdim=True) + torch.linalg.vector_norm(h, 3, dim=1)[:, None],
    "logsumexp": lambda m, h, i: torch.logsumexp(h * 20, 1, keepdim=True),
    "cumsum": lambda m, h, i: h.cumsum(1),
    "softmax of groups": lambda m, h, i: (5 * h).unflatten(1, (2, 2)).softmax(1).flatten(1, 2),
    "softmin": lambda m, h, i: F.softmin(h, 1),
}


def set_where(h: Tensor, chosen: Tensor) -> Tensor:
    h = h.clone()
    h[chosen] = 0.25
    return h


def one_hot(levels: Tensor, classes: int) -> Tensor:
    return F.one_hot(levels[:, 0], classes).movedim(-1, 1)


ROWS = torch.arange(3)[:, None]
COLUMNS = torch.arange(4) + ROWS


def skewed(h: Tensor) -> Tensor:
    wide = torch.zeros(*h.shape[:3], 6, dtype=h.dtype)
    wide[:, :, ROWS, COLUMNS] = h.exp()
    return wide


WRITING = {
    "channels": lambda m, h, i: set_slice(h, h[:, :2].tanh(), ALL, slice(1, 3)),
    "channels in step": lambda m, h, i: set_slice(h, h[:, :2].tanh(), ALL, slice(0, None, 2)),
    "every other row": lambda m, h, i: set_slice(
        torch.zeros_like(h), h[..., :2].tanh(), ALL, ALL, ALL, slice(1, None, 2)
    ),
    "every third row": lambda m, h, i: set_slice(h.exp(), h[:, :, :1], ALL, ALL, slice(0, None, 3)),
    "one channel": lambda m, h, i: set_slice(h, h[:, 3].tanh(), ALL, 1),
    "one channel, constant": lambda m, h, i: set_slice(h, 0.5, ALL, 1),
    "all": lambda m, h, i: set_slice(h, h.exp(), ALL),
    "rows": lambda m, h, i: set_slice(h.exp(), h[:, :, 1:], ALL, ALL, slice(0, -1)),
    "columns of nothing": lambda m, h, i: set_slice(
        torch.zeros_like(h), h[..., :-1], ALL, ALL, ALL, slice(1, None)
    ),
    "rows of a constant": lambda m, h, i: set_slice(h.exp(), 2.0, ALL, ALL, slice(1, 2)),
    "one row": lambda m, h, i: set_slice(h.exp(), h[:, :, 2], ALL, ALL, 0),
    "one column": lambda m, h, i: set_slice(h.exp(), h[..., 2], ALL, ALL, ALL, 1),
    "one row, zeros": lambda m, h, i: set_slice(h.exp(), 0, ALL, ALL, 0) + 1,
    "both": lambda m, h, i: set_slice(
        torch.ones_like(h), h[:, :, :-1, 1:], ALL, ALL, slice(1, None), slice(0, -1)
    ),
    "in place": lambda m, h, i: mul_row(h),
    "a window": lambda m, h, i: set_slice(h.exp(), h[:, 1:2, 1:, 1:], ALL, slice(0, 1), slice(0, 2), slice(0, 3)),
    "index": lambda m, h, i: h[:, [2, 0, 0]].tanh(),
    "index_select": lambda m, h, i: h.index_select(1, torch.tensor([3, 0])).tanh(),
    "roll": lambda m, h, i: h.roll(1, 1).tanh(),
    "roll of positions": lambda m, h, i: h.roll((1, -1), (2, 3)).tanh(),
    "repeat": lambda m, h, i: h.repeat(1, 2, 1, 1).tanh(),
    "repeat, more axes": lambda m, h, i: h[:, :2].repeat(2, 1, 1, 1, 1)[1].tanh(),
    "tile": lambda m, h, i: h.tile(1, 2, 1, 1).tanh(),
    "repeat_interleave": lambda m, h, i: h.repeat_interleave(2, 1).tanh(),
    "expand with more axes": lambda m, h, i: h.expand(3, *h.shape)[1].tanh(),
    "unbind": lambda m, h, i: torch.cat([t[:, None] for t in h.unbind(1)[::-1]], 1).tanh(),
    "one row for all": lambda m, h, i: h[:, :, :1].squeeze(2)[:, :, None].expand(h.shape),
    "unbind of rows": lambda m, h, i: torch.cat([t[:, :, None] for t in h.unbind(2)[::-1]], 2).tanh(),
    "tensor_split": lambda m, h, i: h.tensor_split([1, 3], 1)[1].tanh(),
    "unsafe_chunk": lambda m, h, i: torch.unsafe_chunk(h, 2, 1)[1].tanh(),
    "concat": lambda m, h, i: torch.hstack([torch.concat([h, h.exp()], 1), h]).tanh(),
    "channel_shuffle": lambda m, h, i: F.channel_shuffle(h, 2).tanh(),
    "diff": lambda m, h, i: h.diff(dim=1).tanh(),
    "levels stacked": lambda m, h, i: h + torch.stack([i, 2 * i], 2)[:, :, 1].to(h.dtype),
    "levels split": lambda m, h, i: h + F.pad(i.split(2, 3)[1].to(h.dtype), (1, 1)),
    "levels padded": lambda m, h, i: (
        h + F.one_hot(F.pad(i.clamp(max=4), (1, 0), value=5)[..., :-1], 6)[..., 5].to(h.dtype)
    ),
    "truth values added": lambda m, h, i: ((h > 0) + (h.roll(1, 1) > 0)).to(h.dtype),
    "floats copied into integers": lambda m, h, i: (
        h.new_zeros(h.shape, dtype=torch.long).copy_(h * 3).to(h.dtype)
    ),
    "rows flipped": lambda m, h, i: h.flip(2).tanh(),
    "columns flipped": lambda m, h, i: h.flip(3).flip(1).tanh(),
    "picked rows": lambda m, h, i: h[:, :, [2, 0, 1]].tanh(),
    "picked columns": lambda m, h, i: h.index_select(3, torch.tensor([3, 0, 1, 1])).tanh(),
    "skewed by indices, and back": lambda m, h, i: skewed(h)[:, :, ROWS, COLUMNS].tanh(),
    "fold": lambda m, h, i: F.fold(h.flatten(2), (3, 4), (1, 1)).tanh(),
    "columns one by one": lambda m, h, i: F.conv2d(
        torch.stack([h[..., x].tanh() for x in range(4)], 3), like(h, 4, 4, 1, 1)
    ),
    "stack with a constant": lambda m, h, i: torch.stack([like(h, 1, 3, 4).expand(2, -1, -1), h[:, 0]], 1).tanh(),
    "rows exchanged": lambda m, h, i: torch.cat([h[:, :, 1:], h[:, :, :1]], 2),
    "shift by zeros": lambda m, h, i: torch.cat([torch.zeros_like(h[:, :, :1]), h[:, :, :-1]], 2) + 1,
    "a first token": lambda m, h, i: torch.cat(
        [like(h, 1, 1, 4).expand(h.shape[0], -1, -1), h.flatten(2).transpose(1, 2)[:, :-1]], 1
    ).transpose(1, 2).view(h.shape),
    "constant columns": lambda m, h, i: torch.cat([like(h, 1, 4, 3, 2).expand(h.shape[0], -1, -1, -1), h[..., 2:]], 3),
    "padding by ones": lambda m, h, i: F.pad(h, (1, -1), value=1),
    "padding by numbers": lambda m, h, i: F.pad(h, (0, 0, 1, -1, 1, 2), value=-2.5),
}  # fmt: skip


def mul_row(h: Tensor) -> Tensor:
    h = h.clone()
    h[:, :, 1:].mul_(0.5)
    h[:, :, 0].zero_()
    return h + 1


def four(h: Tensor) -> Tensor:
    """On a grid of 4 x 4."""
    return F.pad(h, (0, 0, 0, 1))


def folded(h: Tensor) -> Tensor:
    """Space to depth, by views."""
    n, c, height, width = h.shape
    return h.view(n, c, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, 2, 2)


def unfolded(h: Tensor) -> Tensor:
    n, c, height, width = h.shape
    return h.view(n, c // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 4, 4)


def squeezed(h: Tensor) -> Tensor:
    """Space to depth of channels last, by views."""
    n, height, width, c = h.shape
    return h.view(n, height // 2, 2, width // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, 2, 2, 4 * c)


SAMPLING = {
    "upsample": lambda m, h, i: F.interpolate(h, scale_factor=2)[:, :, 1:4, 2:6].tanh(),
    "upsample to a size": lambda m, h, i: nn.Upsample((6, 12))(h)[:, :, 2:5, 4:8].tanh(),
    "upsample, exact": lambda m, h, i: F.interpolate(h, scale_factor=2, mode="nearest-exact")[:, :, 1:4, 2:6].tanh(),
    "upsample of a shift": lambda m, h, i: F.interpolate(F.pad(h[..., 1:], (1, 0)), scale_factor=(1, 2))[..., 2:6],
    "repeat_interleave": lambda m, h, i: h.repeat_interleave(2, 2)[:, :, 1:4].repeat_interleave(3, 3)[..., 4:8],
    "pixel_shuffle": lambda m, h, i: F.pixel_shuffle(h, 2)[:, :, 1:4, 2:6].tanh(),
    "pixel_unshuffle": lambda m, h, i: F.interpolate(F.pixel_unshuffle(four(h), 2), scale_factor=2)[:, :, :3],
    "space to depth": lambda m, h, i: F.interpolate(folded(four(h)), scale_factor=2)[:, :, :3],
    "depth to space": lambda m, h, i: unfolded(folded(four(h)).exp())[:, :, :3],
    "channels last": lambda m, h, i: (
        F.interpolate(squeezed(four(h).movedim(1, -1)).movedim(-1, 1), scale_factor=2)[:, :, :3]
    ),
    "every other": lambda m, h, i: F.pad(h[..., ::2], (0, 2)) + F.pad(h[:, :, 1::2], (0, 0, 2, 0)),
    "every third, shifted": lambda m, h, i: F.pad(F.pad(h, (2, 1, 1, 0))[:, 1:, ::3, 1::3], (0, 2, 0, 1)),
    "avg_pool": lambda m, h, i: F.avg_pool2d(h, 2, 1, 1)[:, :, :3, :4],
    "avg_pool, stride": lambda m, h, i: F.pad(F.avg_pool2d(h, (1, 2)), (0, 2)),
    "avg_pool without padding": lambda m, h, i: F.avg_pool2d(h, 3, 1, 1, count_include_pad=False),
    "max_pool": lambda m, h, i: F.max_pool2d(h - 3, 3, 1, 1),
    "max_pool, stride": lambda m, h, i: F.pad(F.max_pool2d(h, 2), (0, 2, 0, 2)),
    "max_pool, dilation": lambda m, h, i: F.max_pool2d(h, (2, 1), 1, dilation=(1, 1)).repeat_interleave(2, 2)[:, :, :3],
    "unfold": lambda m, h, i: F.unfold(h, 3, padding=1).view(-1, 36, HEIGHT, WIDTH).tanh(),
    "unfold, then a product": lambda m, h, i: (like(h, 3, 24) @ F.unfold(h, (2, 3), padding=(1, 1))).view(
        -1, 3, HEIGHT + 1, WIDTH
    )[:, :, :-1],
    "unfold, stride": lambda m, h, i: F.pad(F.unfold(h, 2, stride=(1, 2)).view(-1, 16, 2, 2), (0, 2, 0, 1)),
    "windows of columns": lambda m, h, i: F.pad(h, (2, 0)).unfold(3, 3, 1).movedim(-1, 2).flatten(1, 2).tanh(),
    "windows of channels": lambda m, h, i: h.unfold(1, 2, 2).movedim(-1, 2).flatten(1, 2).tanh(),
}  # fmt: skip


def vector_norms(h: Tensor) -> Tensor:
    """Of whole images as vectors: of groups, of all, by statistics."""
    h = F.layer_norm(F.group_norm(F.linear(h.flatten(1), like(h, 6, 48)), 3, like(h, 6)), (6,))
    return F.batch_norm(h, like(h, 6), like(h, 6).abs())


PRODUCTS = {
    "conv1d": lambda m, h, i: (
        F.conv1d(h.flatten(2), like(h, 3, 4, 3), like(h, 3), padding=2)[..., :-2].view(-1, 3, HEIGHT, WIDTH)
    ),
    "conv1d, padded, dilated": lambda m, h, i: (
        F.conv1d(F.pad(h.flatten(2), (4, 0)), like(h, 4, 2, 3), dilation=2, groups=2).view(h.shape)
    ),
    "conv1d, same": lambda m, h, i: F.conv1d(h.flatten(2), like(h, 4, 4, 3), padding="same").view(h.shape),
    "conv1d of rows": lambda m, h, i: torch.stack(
        [F.conv1d(F.pad(h[:, :, y], (1, 0)), like(h, 4, 4, 2)) for y in range(HEIGHT)], 2
    ),
    "conv_transpose1d": lambda m, h, i: (
        F.conv_transpose1d(h.flatten(2), like(h, 4, 3, 3), padding=1).view(-1, 3, HEIGHT, WIDTH)
    ),
    "conv3d": lambda m, h, i: F.conv3d(h[:, None], like(h, 2, 1, 3, 3, 3), like(h, 2), padding=1).flatten(1, 2),
    "conv3d of one slice": lambda m, h, i: F.conv3d(h[:, :, None], like(h, 2, 4, 1, 2, 2), padding=(0, 1, 1))[
        :, :, 0, :-1, :-1
    ],
    "conv2d of columns": lambda m, h, i: F.conv2d(h.mT, like(h, 3, 4, 3, 2), padding=(1, 1))[..., :-1].mT,
    "transposed, groups": lambda m, h, i: F.conv_transpose2d(h, like(h, 4, 3, 3, 3), padding=1, groups=2),
    "transposed, output padding": lambda m, h, i: F.conv_transpose2d(
        h, like(h, 4, 2, 3, 3), stride=2, padding=1, output_padding=1
    )[:, :, :3, :4],
    "matrix from the left": lambda m, h, i: (like(h, 3, 4) @ h.flatten(2)).view(-1, 3, HEIGHT, WIDTH),
    "matrix from the left, channels last": lambda m, h, i: (
        (like(h, 3, 2) @ h.movedim(1, -1).unflatten(3, (2, 2))).flatten(3).movedim(-1, 1)
    ),
    "vectors": lambda m, h, i: (h.movedim(1, -1) @ like(h, 4))[:, None],
    "matmul": lambda m, h, i: (h.movedim(1, -1) @ like(h, 4, 3)).movedim(-1, 1),
    "a stack of matrices": lambda m, h, i: (
        (h.flatten(2).mT.unflatten(2, (2, 2)).transpose(1, 2) @ like(h, 2, 2, 3)).transpose(2, 3).flatten(1, 2)
    ).view(-1, 6, HEIGHT, WIDTH),
    "addmm": lambda m, h, i: (
        torch.addmm(like(h, 3), h.movedim(1, -1).reshape(-1, 4), like(h, 4, 3), beta=0.5, alpha=2)
        .view(-1, HEIGHT, WIDTH, 3)
        .movedim(-1, 1)
    ),
    "einsum, channels first": lambda m, h, i: torch.einsum("nchw,dc->ndhw", h, like(h, 3, 4)),
    "einsum, channels last": lambda m, h, i: torch.einsum("nchw,cd->nhwd", h, like(h, 4, 3)).movedim(-1, 1),
    "einsum of a sequence": lambda m, h, i: torch.einsum("oc,ncl->nol", like(h, 3, 4), h.flatten(2)).view(
        -1, 3, HEIGHT, WIDTH
    ),
    "einsum of groups": lambda m, h, i: torch.einsum(
        "ngchw,gdc->ngdhw", h.unflatten(1, (2, 2)), like(h, 2, 3, 2)
    ).flatten(1, 2),
    "tensordot": lambda m, h, i: torch.tensordot(h, like(h, 3, 4), dims=([1], [1])).movedim(-1, 1),
    "linear of heads": lambda m, h, i: (
        F.linear(h.movedim(1, -1).unflatten(3, (2, 2)), like(h, 3, 2), like(h, 3)).flatten(3).movedim(-1, 1)
    ),
    "linear of merged axes": lambda m, h, i: F.linear(
        h.movedim(1, -1).unflatten(3, (2, 2)).flatten(3), like(h, 3, 4)
    ).movedim(-1, 1),
    "linear of whole images": lambda m, h, i: F.linear(
        h.flatten(1), like(h, 24, 48), like(h, 24)
    ).relu().view(-1, 2, HEIGHT, WIDTH),
    "norms of whole images": lambda m, h, i: F.linear(vector_norms(h), like(h, 12, 6)).view(-1, 1, HEIGHT, WIDTH),
    "linear of whole rows": lambda m, h, i: F.linear(h, like(h, WIDTH, WIDTH)),
    "linear of positions": lambda m, h, i: F.linear(h.flatten(2), like(h, 12, 12), like(h, 12)).view(h.shape),
    "channels last, whole": lambda m, h, i: F.linear(
        h.movedim(1, -1).flatten(1), like(h, 12, 48)
    ).view(-1, HEIGHT, WIDTH, 1).movedim(-1, 1).tanh() + h,
    "columns first": lambda m, h, i: h.transpose(2, 3).flatten(2).tanh().view(-1, 4, WIDTH, HEIGHT).transpose(2, 3),
}  # fmt: skip
CONDITIONS = {
    "layer_norm": lambda m, h, i, y: (
        F.layer_norm(h.movedim(1, -1), (4,)) * (1 + m.embed(y)[:, None, None, :])
    ).movedim(-1, 1),
    "where": lambda m, h, i, y: torch.where(m.embed(y)[:, :, None, None] > 0, h, -h),
    "masked_fill": lambda m, h, i, y: h.masked_fill(m.grid(y).view(-1, 4, HEIGHT, WIDTH) > 0, -2.0),
    "clamp": lambda m, h, i, y: torch.minimum(h, m.embed(y)[:, :, None, None]),
    "a first token": lambda m, h, i, y: torch.cat(
        [m.embed(y)[:, None], h.flatten(2).transpose(1, 2)[:, :-1]], 1
    ).transpose(1, 2).view(h.shape),
    "whole images": lambda m, h, i, y: F.linear(
        torch.tanh(F.linear(h.flatten(1), like(h, 6, 48)) + m.embed(y)[:, :1]), like(h, 12, 6)
    ).view(-1, 1, HEIGHT, WIDTH),
}  # fmt: skip
TABLES = {
    "one-hot of scaled levels": lambda m, h, i: (
        one_hot((i.to(h.dtype) / 255 * 255).round().long(), 256)[:, :9].to(h.dtype)
    ),
    "one-hot of equalities": lambda m, h, i: (i.unsqueeze(2) == torch.arange(5)[:, None, None]).to(h.dtype)[:, 0],
    "embedding with padding": lambda m, h, i: F.embedding(i[:, 0], like(h, 99, 3), padding_idx=0).movedim(-1, 1),
    "chosen": lambda m, h, i: torch.where(i == 1, 0.5, i.to(h.dtype)).clamp_min(0.25),
    "logic": lambda m, h, i: ((i > 0) & ~(i == 2) | (i == 3)).to(h.dtype),
    "norm of an embedding": lambda m, h, i: (
        F.layer_norm(F.embedding(i[:, 0], like(h, 99, 3)), (3,)).movedim(-1, 1)
    ),
    "meets features": lambda m, h, i: torch.where(i[:, :1] > 1, h, -h) + h.masked_fill(i[:, 1:] == 0, 2.0),
    "mean of colours": lambda m, h, i: i.to(h.dtype).mean(1, keepdim=True),
    "gelu": lambda m, h, i: F.gelu(i.to(h.dtype) - 2),
}  # fmt: skip
FAMILIES = {
    "tables": (TABLES, 2),
    "functions": (FUNCTIONS,),
    "masks": (MASKS,),
    "reductions": (REDUCTIONS,),
    "writing": (WRITING,),
    "sampling": (SAMPLING,),
    "products": (PRODUCTS,),
    "conditions": (CONDITIONS, 1, CLASSES),
}


@functools.cache
def evaluated(family: str) -> tuple[Parts, dict[str, Tensor], np.ndarray]:
    module = Parts(*FAMILIES[family])
    return module, *evaluate(module)


@pytest.mark.parametrize(("family", "name"), [(f, name) for f in FAMILIES for name in FAMILIES[f][0]])
def test_a_rule_computes_what_pytorch_computes(family, name):
    module, wanted, got = evaluated(family)
    np.testing.assert_allclose(part_of(module, name, got), wanted[name].numpy(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("family", ["functions", "reductions"])
def test_functions_and_norms_are_accurate(family):
    module, wanted, got = evaluated(family)
    for name in module.sizes:
        np.testing.assert_allclose(
            part_of(module, name, got), wanted[name].numpy(), rtol=4e-6, atol=2e-6, err_msg=name
        )
