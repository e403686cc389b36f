"""The arithmetic of pixelfast in plain numpy: the definition that every native runtime matches to the bit.

Everything is IEEE single precision, round to nearest even, denormals honoured. Transcendental functions are
fixed sequences of add, multiply, divide, fused multiply-add and bit operations (csrc/core/math.h has the same
lines in C++), so they have one result on every machine. Polynomials are those of Cephes (Moshier 1989).

Probabilities are integers. `frequencies` turns logits into counts that sum to 2**31; `draw`, `log_prob` and
an entropy coder all read the same counts, so that what is sampled is what is scored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

kTotalBits = 31
kTotal = 1 << kTotalBits  # what the frequencies of a distribution sum to

_F = np.float32
_MAGIC = _F(12582912.0)  # 1.5 * 2**23: adding it rounds to an integer, which its low bits then hold
_MAGIC_BITS = np.int32(0x4B400000)


def _f32(x: ArrayLike) -> Floats:
    return np.asarray(x, dtype=np.float32)


def _bits(x: Floats) -> NDArray[np.int32]:
    return np.asarray(x, np.float32, order="C").view(np.int32)


def _floats(i: NDArray[np.int32]) -> Floats:
    return np.asarray(i, np.int32, order="C").view(np.float32)


def fma(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> Floats:
    """Return a * b + c, rounded once to float32.

    The product of two float32 is exact in float64. The sum is rounded to float64 and then to float32, which
    differs from rounding once only where the first rounding lands half way between two float32; there the
    sum is rounded to odd first (Boldo & Melquiond 2008).
    """
    with np.errstate(all="ignore"):
        product = np.asarray(_f32(a), np.float64) * np.asarray(_f32(b), np.float64)
        addend = np.asarray(_f32(c), np.float64)
        total = np.asarray(product + addend)
        half_way = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
        risky = half_way | (np.abs(total) < 2.0**-125)
        if not risky.any():
            return np.asarray(total.astype(np.float32))
        virtual = total - product  # TwoSum (Knuth): `error` is exactly what rounding to float64 lost
        error = (product - (total - virtual)) + (addend - virtual)
        bits = total.view(np.int64)
        inexact = np.isfinite(total) & (error != 0) & ((bits & 1) == 0)
        towards_error = np.where((error > 0) == (total > 0), 1, -1)
        odd = (bits + np.where(inexact, towards_error, 0)).view(np.float64)
        return np.asarray(odd.astype(np.float32))


def _polynomial(x: Floats, *coefficients: float) -> Floats:
    """Evaluate by Horner's rule, highest power first, in fused multiply-adds."""
    y = np.full_like(x, _F(coefficients[0]))
    for c in coefficients[1:]:
        y = fma(y, x, _F(c))
    return y


def minimum(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return a where a < b, else b (also where either is NaN)."""
    a, b = np.broadcast_arrays(_f32(a), _f32(b))
    return np.where(a < b, a, b)


def maximum(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return a where a > b, else b (also where either is NaN)."""
    a, b = np.broadcast_arrays(_f32(a), _f32(b))
    return np.where(a > b, a, b)


def _exponential(x: ArrayLike) -> tuple[Floats, Floats]:
    """Return n and p, such that e**x = 2**n * (1 + p), for -104 <= x <= 89."""
    x = maximum(_F(-104.0), minimum(_F(89.0), x))
    n = fma(x, _F(1.44269504), _MAGIC) - _MAGIC
    r = fma(n, _F(-1.42860677e-6), fma(n, _F(-0.693145752), x))
    q = _polynomial(
        r, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3,
        4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
    )  # fmt: skip
    return n, fma(q, r * r, r)


def _ldexp(x: Floats, n: Floats) -> Floats:
    """Return x * 2**n, in two factors, because 2**n alone may be a denormal or overflow where the result does not."""
    k = _bits(n + _MAGIC) - _MAGIC_BITS
    half = k >> 1
    return x * _floats((half + np.int32(127)) << 23) * _floats((k - half + np.int32(127)) << 23)


def exp(x: ArrayLike) -> Floats:
    """Return e**x: within 1.02 ulp, 0 below -104, infinity above 88.72."""
    with np.errstate(all="ignore"):
        n, p = _exponential(x)
        return _ldexp(p + _F(1.0), n)


def expm1(x: ArrayLike) -> Floats:
    """Return e**x - 1, within 2 ulp."""
    with np.errstate(all="ignore"):
        n, p = _exponential(x)
        scale = _ldexp(np.ones_like(n), n)
        return fma(scale, p, scale - _F(1.0))


def log(x: ArrayLike) -> Floats:
    """Return the natural logarithm, within 1 ulp: -inf at 0, NaN below."""
    with np.errstate(all="ignore"):
        x = _f32(x)
        denormal = x < _F(2.0**-126)
        bits = _bits(np.where(denormal, x * _F(2.0**23), x))
        exponent = (bits - np.int32(0x3F3504F3)) >> 23  # of x relative to sqrt(1/2)
        m = _floats(bits - (exponent << 23))  # in [sqrt(1/2), sqrt(2))
        exponent = exponent - np.where(denormal, np.int32(23), np.int32(0))
        e = _floats(exponent + _MAGIC_BITS) - _MAGIC
        f = m - _F(1.0)
        z = f * f
        p = _polynomial(
            f, 7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
            -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
        )  # fmt: skip
        y = fma(e, _F(-2.12194440e-4), (p * f) * z)
        y = fma(_F(-0.5), z, y)
        y = fma(e, _F(0.693359375), f + y)
        y = np.where(x < _F(np.inf), y, x)  # infinity and NaN pass
        y = np.where(x < _F(0.0), _F(np.nan), y)
        return np.where(x == _F(0.0), _F(-np.inf), y)


def tanh(x: ArrayLike) -> Floats:
    """Return the hyperbolic tangent, within 1.35 ulp."""
    with np.errstate(all="ignore"):
        x = _f32(x)
        a = np.abs(x)
        z = a * a
        p = _polynomial(
            z, -5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1
        )
        near = fma(p * z, a, a)
        far = _F(1.0) - _F(2.0) / (exp(a + a) + _F(1.0))
        magnitude = np.where(a < _F(0.625), near, far)
        return _floats(_bits(magnitude) | (_bits(x) & np.int32(-0x80000000)))


def sigmoid(x: ArrayLike) -> Floats:
    """Return 1 / (1 + e**-x), within 2 ulp, also where it is tiny."""
    with np.errstate(all="ignore"):
        x = _f32(x)
        t = exp(-np.abs(x))
        sum_ = _F(1.0) + t
        gained = (sum_ - _F(1.0)) - t  # by rounding: exactly, since t <= 1
        y = np.where(x < _F(0.0), t, _F(1.0)) / sum_
        return fma(y, gained, y)


def gate(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return tanh(a) * sigmoid(b), within 4 ulp, with one division: for a > 0, e = e**2a - 1 and t = e**-b, it is
    e / ((e + 2) * (1 + t))."""
    with np.errstate(all="ignore"):
        a, b = np.broadcast_arrays(_f32(a), _f32(b))
        e = expm1(minimum(_F(40.0), np.abs(a) + np.abs(a)))
        t = exp(-np.abs(b))
        sum_ = e + _F(2.0)
        magnitude = e * np.where(b < _F(0.0), t, _F(1.0)) / fma(sum_, t, sum_)
        return _floats(_bits(magnitude) | (_bits(a) & np.int32(-0x80000000)))


def relu(x: ArrayLike) -> Floats:
    """Return 0 where x < 0, else x (NaN passes)."""
    x = _f32(x)
    return np.where(x < _F(0.0), _F(0.0), x)


def elu(x: ArrayLike) -> Floats:
    """Return x where x > 0, else e**x - 1, within 1 ulp."""
    x = _f32(x)
    return np.where(x > _F(0.0), x, expm1(x))


def total(x: ArrayLike) -> Floats:
    """Sum the last axis: sixteen interleaved partial sums, then those added pairwise, the far half to the near one."""
    x = _f32(x)
    x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 16)])
    partial = np.zeros((*x.shape[:-1], 16), np.float32)
    for i in range(0, x.shape[-1], 16):
        partial = partial + x[..., i : i + 16]
    return _pairwise(partial)


def dot(a: ArrayLike, b: ArrayLike) -> Floats:
    """Sum a * b over the last axis, in fused multiply-adds to the partial sums of `total`."""
    a, b = np.broadcast_arrays(_f32(a), _f32(b))
    pad = [(0, 0)] * (a.ndim - 1) + [(0, -a.shape[-1] % 16)]
    a, b = np.pad(a, pad), np.pad(b, pad)
    partial = np.zeros((*a.shape[:-1], 16), np.float32)
    for i in range(0, a.shape[-1], 16):
        partial = fma(a[..., i : i + 16], b[..., i : i + 16], partial)
    return _pairwise(partial)


def _pairwise(partial: Floats) -> Floats:
    while (half := partial.shape[-1] // 2) > 0:
        partial = partial[..., :half] + partial[..., half:]
    return partial[..., 0]


def philox(seed: int, image: int, counter: int) -> tuple[int, int, int, int]:
    """Return the four words of Philox4x32-10 (Salmon et al. 2011) with key `seed`.

    `counter` counts (pixel, colour): (y * width + x) * colours + c. `image` is the index of the image.
    """
    word = 0xFFFFFFFF
    k0, k1 = seed & word, seed >> 32 & word
    c0, c1, c2, c3 = counter & word, counter >> 32 & word, image & word, image >> 32 & word
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & word, (p0 >> 32) ^ c3 ^ k1, p0 & word
        k0, k1 = (k0 + 0x9E3779B9) & word, (k1 + 0xBB67AE85) & word
    return c0, c1, c2, c3


def uniform(seed: int, image: int, counter: int) -> int:
    """Return the integer in [0, 2**31) that decides the draw of one colour of one pixel."""
    return philox(seed, image, counter)[0] >> 1


def inverse_temperature(temperature: float) -> np.float32:
    """Return 1 / temperature as the float32 that logits are multiplied by."""
    with np.errstate(all="ignore"):
        inverse = _F(1.0 / temperature) if temperature > 0 else _F(np.nan)
    if not np.isfinite(inverse) or inverse <= 0:
        raise ValueError(f"[sample] temperature must be positive and finite, got {temperature}")
    return inverse


def frequencies(
    logits: ArrayLike, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Ints:
    """Turn logits into integer frequencies that sum to 2**31.

    logits: float32 (levels,). Levels of logit -inf are excluded (frequency 0), as are those that `top_k` (the
    k largest) and then `top_p` (the fewest whose weight reaches top_p of the rest) leave out; levels rank by
    descending logit, the lower index first. Every other level has a frequency of at least 1. What rounding
    leaves goes to the first of the largest logits.

    Returns int64 (levels,). Raises ValueError where a logit is NaN or +inf, or all are -inf.
    """
    logits = _f32(logits)
    inverse = inverse_temperature(temperature)
    if np.isnan(logits).any():
        raise ValueError("[sample] the model gave NaN logits")
    largest = logits.max()
    if not np.isfinite(largest):
        what = "infinite logits" if largest > 0 else "no level a chance (every logit is -inf)"
        raise ValueError(f"[sample] the model gave {what}")
    with np.errstate(all="ignore"):
        e = exp((logits - largest) * inverse)
    weights = (e * _F(2.0**30)).astype(np.int64)
    allowed = logits > -np.inf
    if top_k or (top_p is not None and top_p < 1):
        order = np.argsort(-logits, kind="stable")
        order = order[allowed[order]][: top_k or None]
        if top_p is not None and top_p < 1:
            mass = np.cumsum(weights[order])
            enough = np.flatnonzero(mass.astype(np.float64) >= top_p * np.float64(mass[-1]))
            order = order[: int(enough[0]) + 1]
        allowed = np.zeros_like(allowed)
        allowed[order] = True
    n = int(allowed.sum())
    scale = np.float64(kTotal - n) / np.float64(weights[allowed].sum())
    result = np.where(allowed, 1 + (weights.astype(np.float64) * scale).astype(np.int64), 0)
    result[int(np.argmax(logits))] += kTotal - result.sum()
    return result


def bernoulli_frequencies(logit: float, **options: float) -> Ints:
    """Return the frequencies of levels 0 and 1, where `logit` is that of level 1."""
    return frequencies(_f32([0.0, logit]), **options)  # type: ignore[arg-type]


def draw(freqs: ArrayLike, u: int) -> int:
    """Return the level whose cumulative interval holds u, an integer in [0, 2**31)."""
    return int(np.searchsorted(np.cumsum(np.asarray(freqs, np.int64)), u, side="right"))


def log_prob(freqs: ArrayLike, level: int) -> np.float32:
    """Return log(frequency / 2**31) of a level in float32; -inf where the frequency is 0."""
    frequency = np.asarray(freqs, np.int64)[level]
    return _F(log(_F(frequency) * _F(2.0**-31)).item())
