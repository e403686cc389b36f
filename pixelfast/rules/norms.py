"""Rules for norms: of the channels of a position, whatever they are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..lower import Lowering, lowers
from ..values import View
from .reductions import centred, channel_axes, mean

aten = torch.ops.aten


def _scaled(ctx: Lowering, v: View, variance: View, epsilon: float, weight: Any, bias: Any) -> View:
    """v / sqrt(variance + epsilon) * weight + bias."""
    steps: list[tuple] = [("add", 1, float(epsilon)), ("sqrt", -1), ("div", 0, -1)]
    values: list[Any] = [v, variance]
    for fn, value in (("mul", weight), ("add", bias)):
        if value is not None:
            steps.append((fn, -1, len(values)))
            values.append(value)
    return ctx.pointwise(values, *steps)


@lowers(aten.layer_norm.default)
def _layer_norm(
    ctx: Lowering,
    a: Any,
    shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    epsilon: float = 1e-5,
    _cudnn: bool = True,
) -> View:
    """Over the last axes (Ba et al. 2016, equation 4)."""
    v = ctx.view(a)
    axes = channel_axes(ctx, v, range(-len(shape), 0), "a norm")
    return _scaled(ctx, *centred(ctx, v, axes, 0), epsilon, weight, bias)


@lowers(aten.native_layer_norm.default)
def _native_layer_norm(ctx: Lowering, *args: Any) -> list[View | None]:
    return [_layer_norm(ctx, *args), None, None]


@lowers(aten.rms_norm.default)
def _rms_norm(
    ctx: Lowering, a: Any, shape: Sequence[int], weight: Any = None, epsilon: float | None = None
) -> View:
    """Over the last axes (Zhang & Sennrich 2019, equation 4)."""
    v = ctx.view(a)
    axes = channel_axes(ctx, v, range(-len(shape), 0), "a norm")
    squares = mean(ctx, ctx.pointwise([v], ("mul", 0, 0)), axes)
    return _scaled(
        ctx, v, squares, torch.finfo(torch.float32).eps if epsilon is None else epsilon, weight, None
    )


@lowers(aten._fused_rms_norm.default)
def _fused_rms_norm(ctx: Lowering, *args: Any) -> list[View | None]:
    return [_rms_norm(ctx, *args), None]


@lowers(aten.group_norm.default)
def _group_norm(
    ctx: Lowering,
    a: Any,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    epsilon: float = 1e-5,
    _: bool = True,
) -> View:
    """Over groups of channels, the second axis, and all that follow (Wu & He 2018)."""
    v = ctx.view(a)
    rest = range(1, len(v.axes))
    channel_axes(ctx, v, rest, "a norm")
    at = v.ref_axis(1)
    parts = v.refs.reshape(*v.refs.shape[:at], groups, -1, *v.refs.shape[at + 1 :])
    apart = replace(v, axes=v.axes[0] + "cc" + v.axes[2:], refs=parts)
    axes = channel_axes(ctx, apart, range(2, len(apart.axes)), "a norm")
    constants = [_along_second(p, v) for p in (weight, bias)]
    difference, variance = centred(ctx, apart, axes, 0)
    each = [replace(part, axes=v.axes, refs=_merged(part, at)) for part in (difference, variance)]
    size = v.refs.shape[at] // groups
    spread = replace(each[1], refs=each[1].refs.repeat(size, at))
    return _scaled(ctx, each[0], spread, epsilon, *constants)


def _merged(v: View, at: int) -> Any:
    return v.refs.reshape(*v.refs.shape[:at], -1, *v.refs.shape[at + 2 :])


def _along_second(parameter: Any, v: View) -> Any:
    return parameter.reshape(-1, *[1] * (len(v.axes) - 2)) if isinstance(parameter, Tensor) else parameter


@lowers(aten.instance_norm.default)
def _instance_norm(
    ctx: Lowering,
    a: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    of_input: bool,
    _: float,
    epsilon: float,
    *__: Any,
) -> View:
    """Over all axes after the second (Ulyanov et al. 2016), or by statistics of training."""
    v = ctx.view(a)
    constants = [_along_second(p, v) for p in (weight, bias)]
    if not of_input:
        shift, scale = (_along_second(p, v) for p in (mean, variance))
        return _scaled(ctx, ctx.pointwise([v, shift], ("sub", 0, 1)), scale, epsilon, *constants)
    axes = channel_axes(ctx, v, range(2, len(v.axes)), "a norm")
    return _scaled(ctx, *centred(ctx, v, axes, 0), epsilon, *constants)
