"""Rules for elementwise ops. Each becomes a `map` op; `plan.fuse` joins them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..lower import Lowering, lowers

aten = torch.ops.aten

_BINARY = {
    "add": (aten.add.Tensor, aten.add_.Tensor),
    "sub": (aten.sub.Tensor, aten.sub_.Tensor),
    "div": (aten.div.Tensor, aten.div_.Tensor, aten.true_divide.Tensor),
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
    """Where x is negative, alpha * (exp(input_scale * x) - 1)."""
    if (alpha, scale, input_scale) == (1, 1, 1):
        return ctx.pointwise([a], ("elu", 0))
    if input_scale == 1 and alpha > 0:  # one product is right above 0, the other below
        products = [("elu", 0), ("mul", -1, float(scale)), ("mul", -3, float(alpha * scale))]
        return ctx.pointwise([a], *products, ("min" if (alpha > 1) == (scale > 0) else "max", -3, -1))
    below = [("mul", 0, float(input_scale)), ("elu", -1), ("min", -1, 0.0), ("mul", -1, float(alpha))]
    return ctx.pointwise([a], *below, ("max", 0, 0.0), ("add", -1, -3), ("mul", -1, float(scale)))


@lowers(aten.celu.default)
def _celu(ctx: Lowering, a: Any, alpha: float = 1) -> Any:
    return _elu(ctx, a, alpha, 1, 1 / alpha)


@lowers(aten.selu.default)
def _selu(ctx: Lowering, a: Any) -> Any:
    """Klambauer et al. 2017, equation 2."""
    return _elu(ctx, a, 1.6732632423543772, 1.0507009873554805)


@lowers(aten.leaky_relu.default)
def _leaky_relu(ctx: Lowering, a: Any, slope: float = 0.01) -> Any:
    return ctx.pointwise([a, float(slope)], ("mul", 0, 1), ("max", 0, -1) if slope <= 1 else ("min", 0, -1))


@lowers(aten._prelu_kernel.default, aten.prelu.default)
def _prelu(ctx: Lowering, a: Any, slope: Any) -> Any:
    v = ctx.view(a)
    if isinstance(slope, torch.Tensor) and slope.ndim == 1:  # of the second axis
        slope = slope.reshape(-1, *[1] * (len(v.axes) - 2))
    return ctx.pointwise([v, slope], ("min", 0, 0.0), ("mul", -1, 1), ("max", 0, 0.0), ("add", -1, -3))


@lowers(aten.rrelu.default)
def _rrelu(ctx: Lowering, a: Any, low: float = 1 / 8, high: float = 1 / 3, *_: Any) -> Any:
    """In eval mode."""
    return _leaky_relu(ctx, a, (low + high) / 2)


@lowers(aten.softplus.default)
def _softplus(ctx: Lowering, a: Any, beta: float = 1, threshold: float = 20) -> Any:
    """max(x, 0) + log(1 + exp(-|x|)), which does not overflow."""
    if threshold < 15:
        raise ctx.fail(
            f"softplus with threshold {threshold}; supported is 15 and more, where it makes no difference"
        )
    rest = (("abs", 0), ("neg", -1), ("exp", -1), ("add", -1, 1.0), ("log", -1))
    if beta == 1:
        return ctx.pointwise([a], *rest, ("max", 0, 0.0), ("add", -1, -3))
    scaled = ctx.pointwise([a, float(beta)], ("mul", 0, 1))
    return ctx.pointwise([scaled, float(beta)], *rest, ("max", 0, 0.0), ("add", -1, -3), ("div", -1, 1))


@lowers(aten.log_sigmoid.default)
def _log_sigmoid(ctx: Lowering, a: Any) -> Any:
    return ctx.pointwise([_softplus(ctx, ctx.pointwise([a], ("neg", 0)))], ("neg", 0))


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


@lowers(aten.clamp.default, aten.clamp.Tensor)
def _clamp(ctx: Lowering, a: Any, low: Any = None, high: Any = None) -> Any:
    bounds = [(fn, bound) for fn, bound in (("max", low), ("min", high)) if bound is not None]
    values = [a, *(float(b) if isinstance(b, int | float) else b for _, b in bounds)]
    return ctx.pointwise(values, *((fn, -1 if i else 0, i + 1) for i, (fn, _) in enumerate(bounds)))


@lowers(aten.clamp_min.default, aten.clamp_min.Tensor)
def _clamp_min(ctx: Lowering, a: Any, low: Any) -> Any:
    return _clamp(ctx, a, low)


@lowers(aten.clamp_max.default, aten.clamp_max.Tensor)
def _clamp_max(ctx: Lowering, a: Any, high: Any) -> Any:
    return _clamp(ctx, a, None, high)


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
