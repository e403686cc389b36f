"""Rules for elementwise ops. Each becomes a `map` op; `plan.fuse` joins them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..lower import Lowering, View, lowers
from .rounding import truncated

aten = torch.ops.aten

_BINARY = {
    "add": (aten.add.Tensor, aten.add_.Tensor),
    "sub": (aten.sub.Tensor, aten.sub_.Tensor),
    "mul": (aten.mul.Tensor, aten.mul_.Tensor, aten.mul.Scalar),
    "div": (aten.div.Tensor, aten.div_.Tensor),
    "min": (aten.minimum.default,),
    "max": (aten.maximum.default,),
}
_UNARY = {
    "neg": (aten.neg.default,),
    "abs": (aten.abs.default,),
    "sqrt": (aten.sqrt.default,),
    "exp": (aten.exp.default,),
    "log": (aten.log.default,),
    "tanh": (aten.tanh.default,),
    "sigmoid": (aten.sigmoid.default,),
    "relu": (aten.relu.default, aten.relu_.default),
}


def _binary(fn: str) -> Callable:
    def rule(ctx: Lowering, a: Any, b: Any, *, alpha: float = 1) -> Any:
        if alpha != 1:
            return ctx.pointwise([a, b], ("mul", 1, float(alpha)), (fn, 0, -1))
        return ctx.pointwise([a, b], (fn, 0, 1))

    return rule


def _unary(fn: str) -> Callable:
    return lambda ctx, a: ctx.pointwise([a], (fn, 0))


for _fn, _targets in _BINARY.items():
    lowers(*_targets)(_binary(_fn))
for _fn, _targets in _UNARY.items():
    lowers(*_targets)(_unary(_fn))


@lowers(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(ctx: Lowering, a: Any, b: Any, alpha: float = 1) -> Any:
    return ctx.pointwise([a, b], ("mul", 0, float(alpha)), ("sub", 1, -1))


@lowers(aten.reciprocal.default)
def _reciprocal(ctx: Lowering, a: Any) -> Any:
    return ctx.pointwise([a, 1.0], ("div", 1, 0))


@lowers(aten.elu.default)
def _elu(ctx: Lowering, a: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    if (alpha, scale, input_scale) != (1, 1, 1):
        raise ctx.fail(
            f"elu with alpha {alpha}, scale {scale}, input_scale {input_scale}; supported is (1, 1, 1)"
        )
    return ctx.pointwise([a], ("elu", 0))


@lowers(aten.leaky_relu.default)
def _leaky_relu(ctx: Lowering, a: Any, slope: float = 0.01) -> Any:
    return ctx.pointwise([a, float(slope)], ("mul", 0, 1), ("max", 0, -1) if slope <= 1 else ("min", 0, -1))


@lowers(aten._prelu_kernel.default, aten.prelu.default)
def _prelu(ctx: Lowering, a: Any, slope: Any) -> Any:
    v = ctx.view(a)
    if isinstance(slope, torch.Tensor) and slope.ndim == 1:  # of the second axis
        slope = slope.reshape(-1, *[1] * (len(v.axes) - 2))
    return ctx.pointwise([v, slope], ("min", 0, 0.0), ("mul", -1, 1), ("max", 0, 0.0), ("add", -1, -3))


@lowers(aten.softplus.default)
def _softplus(ctx: Lowering, a: Any, beta: float = 1, threshold: float = 20) -> Any:
    """max(x, 0) + log(1 + exp(-|x|)), which does not overflow."""
    if beta != 1:
        raise ctx.fail(f"softplus with beta {beta}; supported is 1")
    rest = (("abs", 0), ("neg", -1), ("exp", -1), ("add", -1, 1.0), ("log", -1))
    return ctx.pointwise([a], *rest, ("max", 0, 0.0), ("add", -1, -3))


@lowers(aten._native_batch_norm_legit_no_training.default)
def _batch_norm(
    ctx: Lowering, a: Any, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, epsilon: float
) -> Any:
    """In eval mode: a scale and a shift of each channel, the second axis. (The op returns two more, empty tensors.)"""
    scale = torch.rsqrt(variance.double() + epsilon) * (1 if weight is None else weight.double())
    shift = (0 if bias is None else bias.double()) - mean.double() * scale
    along = (-1, *[1] * (len(ctx.view(a).axes) - 2))
    constants = (scale.float().reshape(along), shift.float().reshape(along))
    return [ctx.pointwise([a, *constants], ("mul", 0, 1), ("add", -1, 2)), None, None]


@lowers(aten.silu.default)
def _silu(ctx: Lowering, a: Any) -> Any:
    return ctx.pointwise([a], ("sigmoid", 0), ("mul", 0, -1))


@lowers(aten.clamp.default)
def _clamp(ctx: Lowering, a: Any, low: float | None = None, high: float | None = None) -> Any:
    steps: list[tuple] = []
    if low is not None:
        steps.append(("max", 0, float(low)))
    if high is not None:
        steps.append(("min", -1 if steps else 0, float(high)))
    return ctx.pointwise([a], *steps)


@lowers(aten.hardtanh.default)
def _hardtanh(ctx: Lowering, a: Any, low: float = -1, high: float = 1) -> Any:
    return _clamp(ctx, a, low, high)


@lowers(aten.relu6.default)
def _relu6(ctx: Lowering, a: Any) -> Any:
    return _clamp(ctx, a, 0, 6)


@lowers(
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
)
def _same(ctx: Lowering, a: Any, **_: Any) -> Any:
    return a


@lowers(aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout)
def _to(ctx: Lowering, a: Any, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Any:
    if isinstance(a, View) and dtype in (torch.int32, torch.int64):  # held as floats
        return truncated(ctx, a)
    if isinstance(a, View) and dtype not in (None, torch.float32):
        raise ctx.fail(f"feature maps are float32, the model converts one to {dtype}")
    return a
