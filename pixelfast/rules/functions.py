"""Rules for powers, logarithms and activations that are composed of the elementwise functions of ops.def.

Each form is chosen for its relative accuracy, also near zero and far out, where a literal reading cancels.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..lower import Lowering, lowers
from .rounding import HUGE, nearest

aten = torch.ops.aten


# --- powers and logarithms ------------------------------------------------------------------------------------


def power(ctx: Lowering, a: Any, exponent: float) -> Any:
    """Small integers by products, halves by roots, others by logarithms, which are of positive bases."""
    if exponent == 0:
        return ctx.pointwise([a], ("mul", 0, 0.0), ("add", -1, 1.0))
    if exponent < 0:
        return ctx.pointwise([power(ctx, a, -exponent)], ("div", 1.0, 0))
    if exponent == 0.5:
        return ctx.pointwise([a], ("sqrt", 0))
    if exponent == int(exponent) and exponent <= 64:
        n = int(exponent)
        lines: list[tuple] = []
        for bit in bin(n)[3:]:
            lines.append(("mul", -1, -1) if lines else ("mul", 0, 0))
            if bit == "1":
                lines.append(("mul", -1, 0))
        return ctx.pointwise([a], *lines) if lines else a
    if exponent == int(exponent):
        raise ctx.fail(f"the power {exponent:g}; supported are integers up to 64, and fractions")
    return ctx.pointwise([a], ("log", 0), ("mul", -1, float(exponent)), ("exp", -1))


@lowers(aten.pow.Tensor_Scalar)
def _pow(ctx: Lowering, a: Any, exponent: float) -> Any:
    return power(ctx, a, exponent)


@lowers(aten.pow.Scalar)
def _pow_of(ctx: Lowering, base: float, a: Any) -> Any:
    if base <= 0:
        raise ctx.fail(f"powers of {base}; supported are those of positive numbers")
    return ctx.pointwise([a], ("mul", 0, math.log(base)), ("exp", -1))


@lowers(aten.square.default)
def _square(ctx: Lowering, a: Any) -> Any:
    return power(ctx, a, 2)


@lowers(aten.rsqrt.default)
def _rsqrt(ctx: Lowering, a: Any) -> Any:
    return power(ctx, a, -0.5)


@lowers(aten.exp2.default)
def _exp2(ctx: Lowering, a: Any) -> Any:
    return _pow_of(ctx, 2, a)


@lowers(aten.log2.default)
def _log2(ctx: Lowering, a: Any) -> Any:
    return ctx.pointwise([a], ("log", 0), ("div", -1, math.log(2)))


@lowers(aten.log10.default)
def _log10(ctx: Lowering, a: Any) -> Any:
    return ctx.pointwise([a], ("log", 0), ("div", -1, math.log(10)))


@lowers(aten.expm1.default)
def _expm1(ctx: Lowering, a: Any) -> Any:
    """tanh(x / 2) * (exp(x) + 1)."""
    return ctx.pointwise([a], ("mul", 0, 0.5), ("tanh", -1), ("exp", 0), ("add", -1, 1.0), ("mul", -4, -1))


@lowers(aten.log1p.default)
def _log1p(ctx: Lowering, a: Any) -> Any:
    """log(u) + (x - (u - 1)) / u, u the float next to 1 + x."""
    u = ctx.pointwise([a], ("add", 0, 1.0))
    rest = [("sub", 1, 1.0), ("sub", 0, -1), ("max", 1, 1e-30), ("div", -3, -1)]
    return ctx.pointwise([a, u], ("log", 1), *rest, ("add", 2, -1))


@lowers(aten.logaddexp.default)
def _logaddexp(ctx: Lowering, a: Any, b: Any) -> Any:
    less = ctx.pointwise([a, b], ("sub", 0, 1), ("abs", -1), ("neg", -1), ("exp", -1))
    return ctx.pointwise([a, b, _log1p(ctx, less)], ("max", 0, 1), ("add", -1, 2))


@lowers(aten.sign.default, aten.sgn.default)
def _sign(ctx: Lowering, a: Any) -> Any:
    return ctx.pointwise([a], ("mul", 0, HUGE), ("mul", -1, HUGE), ("max", -1, -1.0), ("min", -1, 1.0))


# --- sines ----------------------------------------------------------------------------------------------------

# pi in three parts, of which multiples up to 2**13 of the first two are exact; sin(r) / r at r*r up to pi*pi/4.
_PI = (3.140625, 0.0009670257568359375, 6.277114152908325e-07)
_SINE = (1.5896910e-10, -2.5050763e-8, 2.7557314e-6, -1.9841270e-4, 8.3333333e-3, -1.6666667e-1)


def _sine(ctx: Lowering, a: Any, turn: float) -> Any:
    """sin(a + turn * pi), turn 0 or 1/2: of what the nearest multiple of pi leaves, whose parity is the sign."""
    k = nearest(ctx, ctx.pointwise([a], ("mul", 0, 1 / math.pi), ("add", -1, turn)))
    even = ctx.pointwise(
        [nearest(ctx, ctx.pointwise([k], ("mul", 0, 0.5), ("add", -1, 0.25)))], ("mul", 0, 2.0)
    )
    r: Any = a
    h = ctx.pointwise([k], ("sub", 0, turn)) if turn else k
    for part in _PI:
        r = ctx.pointwise([r, h], ("mul", 1, part), ("sub", 0, -1))
    lines: list[tuple] = [("mul", 0, 0), ("mul", -1, _SINE[0])]
    for c in _SINE[1:]:
        lines += [("add", -1, c), ("mul", -1, 3)]
    odd = [("sub", 1, 2), ("abs", -1), ("mul", -1, -2.0), ("add", -1, 1.0)]
    value = ctx.pointwise([r, r, r], *lines, ("mul", -1, 0), ("add", -1, 0))
    return ctx.pointwise([value, k, even], *odd, ("mul", -1, 0))


@lowers(aten.sin.default)
def _sin(ctx: Lowering, a: Any) -> Any:
    """Within 4e-7 up to 1e4."""
    return _sine(ctx, a, 0.0)


@lowers(aten.cos.default)
def _cos(ctx: Lowering, a: Any) -> Any:
    """Within 4e-7 up to 1e4."""
    return _sine(ctx, a, 0.5)


# --- the normal distribution ----------------------------------------------------------------------------------

# erfc(z) = t * exp(-z*z + polynomial(t)), t = 1 / (1 + z/2), to 1.2e-7 (Press et al. 1992, section 6.2).
_ERFC = (
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368,
    -1.26551223,
)  # fmt: skip
_FAR = 20.0  # beyond, erfc is 0


def _erfc(ctx: Lowering, z: Any) -> Any:
    """The complementary error function where z is not negative."""
    t = ctx.pointwise([z], ("mul", 0, 0.5), ("add", -1, 1.0), ("div", 1.0, -1))
    lines: list[tuple] = [("mul", 0, _ERFC[0]), ("add", -1, _ERFC[1])]
    for c in _ERFC[2:]:
        lines += [("mul", -1, 0), ("add", -1, c)]
    return ctx.pointwise([t, z], *lines, ("mul", 1, 1), ("sub", -2, -1), ("exp", -1), ("mul", 0, -1))


@lowers(aten.erf.default)
def _erf(ctx: Lowering, a: Any) -> Any:
    """Within 4e-7."""
    far = ctx.pointwise([a], ("abs", 0), ("min", -1, _FAR))
    return ctx.pointwise([_sign(ctx, a), _erfc(ctx, far)], ("sub", 1.0, 1), ("mul", 0, -1))


@lowers(aten.gelu.default)
def _gelu(ctx: Lowering, a: Any, *, approximate: str = "none") -> Any:
    """max(x, 0) - |x| * P(X > |x|) for a normal X (Hendrycks & Gimpel 2016)."""
    if approximate == "tanh":  # (1 + tanh(u)) / 2 is sigmoid(2 u)
        k = 2 * math.sqrt(2 / math.pi)
        cubic = [("mul", 0, 0), ("mul", -1, 0.044715), ("add", -1, 1.0), ("mul", -1, 0), ("mul", -1, k)]
        return ctx.pointwise([a], *cubic, ("sigmoid", -1), ("mul", 0, -1))
    far = ctx.pointwise([a], ("abs", 0), ("min", -1, _FAR))
    tail = _erfc(ctx, ctx.pointwise([far], ("mul", 0, math.sqrt(0.5))))
    return ctx.pointwise([a, far, tail], ("mul", 1, 0.5), ("mul", -1, 2), ("max", 0, 0.0), ("sub", -1, -3))


# --- other activations ----------------------------------------------------------------------------------------


@lowers(aten.hardsigmoid.default)
def _hardsigmoid(ctx: Lowering, a: Any) -> Any:
    return ctx.pointwise([a], ("add", 0, 3.0), ("max", -1, 0.0), ("min", -1, 6.0), ("div", -1, 6.0))


@lowers(aten.hardswish.default)
def _hardswish(ctx: Lowering, a: Any) -> Any:
    return ctx.pointwise([a, _hardsigmoid(ctx, a)], ("mul", 0, 1))


@lowers(aten.mish.default)
def _mish(ctx: Lowering, a: Any) -> Any:
    """x * tanh(log(1 + e)) for e = exp(x), which is x * n / (n + 2) for n = e * (e + 2) (Misra 2019)."""
    e = ctx.pointwise([a], ("min", 0, 20.0), ("exp", -1))
    n = ctx.pointwise([e], ("add", 0, 2.0), ("mul", 0, -1))
    return ctx.pointwise([a, n], ("add", 1, 2.0), ("div", 1, -1), ("mul", 0, -1))


@lowers(aten.addcmul.default)
def _addcmul(ctx: Lowering, a: Any, b: Any, c: Any, *, value: float = 1) -> Any:
    return ctx.pointwise([a, b, c], ("mul", 1, 2), ("mul", -1, float(value)), ("add", 0, -1))


@lowers(aten.addcdiv.default)
def _addcdiv(ctx: Lowering, a: Any, b: Any, c: Any, *, value: float = 1) -> Any:
    return ctx.pointwise([a, b, c], ("div", 1, 2), ("mul", -1, float(value)), ("add", 0, -1))


@lowers(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(ctx: Lowering, a: Any, b: Any, weight: Any) -> Any:
    return ctx.pointwise([a, b, weight], ("sub", 1, 0), ("mul", -1, 2), ("add", 0, -1))
