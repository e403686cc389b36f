// exp, log, tanh, sigmoid and more from IEEE add, multiply, divide, fused multiply-add and bit operations
// alone, so that every lane type gives the same bits. pixelfast/numerics.py has the same lines in numpy. The
// polynomials are those of Cephes (Moshier 1989).
//
// V is a lane type: V::set, V::fma(a, b, c), V::sqrt, V::select(mask, a, b), V::lt, V::eq, V::bits,
// V::floats,
// V::min (a < b ? a : b), V::max (b < a ? a : b), V::ldexp(p, n) for integral n, + - * / on V, and V::Int
// with + - & | ^ and shifts.
#pragma once

#include <cstdint>

#include "core/portable.h"

namespace pixelfast {

constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, held by the low bits
constexpr int32_t kRoundingBits = 0x4B400000;

template <class V>
PIXELFAST_BOTH inline V vabs(V x) {
  return V::floats(V::bits(x) & V::Int::set(0x7FFFFFFF));
}

template <class V>
PIXELFAST_BOTH inline V vneg(V x) {
  return V::floats(V::bits(x) ^ V::Int::set(INT32_MIN));
}

// Horner's rule, highest power first.
template <class V>
PIXELFAST_BOTH inline V polynomial(V, V y) {
  return y;
}
template <class V, class... Rest>
PIXELFAST_BOTH inline V polynomial(V x, V y, float c, Rest... rest) {
  return polynomial(x, V::fma(y, x, V::set(c)), rest...);
}

// p * 2^k in two factors, because 2^k alone may be a denormal or overflow where the result does not.
template <class V>
PIXELFAST_BOTH inline V ldexp_by_halves(V p, typename V::Int k) {
  using I = typename V::Int;
  const I half = k.template sra<1>(), bias = I::set(127);
  return p * V::floats((half + bias).template shl<23>()) * V::floats((k - half + bias).template shl<23>());
}

constexpr float kLeastPower = -104.0f, kLargestPower = 89.0f;  // of e, beyond which nothing changes

// e^x = 2^n * (1 + p), kLeastPower <= x <= kLargestPower; NaN passes.
template <class V>
struct Exponential {
  V n, p;
  PIXELFAST_BOTH explicit Exponential(V x) {
    n = V::fma(x, V::set(1.44269504f), V::set(kRounding)) - V::set(kRounding);
    const V r = V::fma(n, V::set(-1.42860677e-6f), V::fma(n, V::set(-0.693145752f), x));
    const V q = polynomial(r, V::set(1.9875691500e-4f), 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                           1.6666665459e-1f, 5.0000001201e-1f);
    p = V::fma(q, r * r, r);
  }
};

// The upper bound is for x > 0, the lower one for x < 0: where the sign is known, so is one of them.
template <class V>
PIXELFAST_BOTH inline V from_below(V x) {
  return V::max(V::set(kLeastPower), x);
}
template <class V>
PIXELFAST_BOTH inline V from_above(V x) {
  return V::min(V::set(kLargestPower), x);
}

// Of an x within the bounds.
template <class V>
PIXELFAST_BOTH inline V vexp_within(V x) {
  const Exponential<V> e(x);
  return V::ldexp(e.p + V::set(1.0f), e.n);
}
template <class V>
PIXELFAST_BOTH inline V vexp(V x) {
  return vexp_within(from_below(from_above(x)));
}

// e^x - 1, exact to the last bits near zero, too.
template <class V>
PIXELFAST_BOTH inline V vexpm1_within(V x) {
  const Exponential<V> e(x);
  const V scale = V::ldexp(V::set(1.0f), e.n);
  return V::fma(scale, e.p, scale - V::set(1.0f));
}

template <class V>
PIXELFAST_BOTH inline V vexpm1(V x) {
  return vexpm1_within(from_below(from_above(x)));
}

template <class V>
PIXELFAST_BOTH inline V vlog(V x) {
  using I = typename V::Int;
  const auto denormal = V::lt(x, V::set(0x1p-126f));
  const I bits = V::bits(V::select(denormal, x * V::set(0x1p23f), x));
  const I exponent = (bits - I::set(0x3F3504F3)).template sra<23>();  // relative to sqrt(1/2)
  const V f = V::floats(bits - exponent.template shl<23>()) - V::set(1.0f);
  const I shift = V::bits(V::select(denormal, V::floats(I::set(23)), V::floats(I::set(0))));
  const V e = V::floats(exponent - shift + I::set(kRoundingBits)) - V::set(kRounding);
  const V p =
      polynomial(f, V::set(7.0376836292e-2f), -1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f,
                 1.4249322787e-1f, -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f);
  V y = V::fma(e, V::set(-2.12194440e-4f), (p * f) * (f * f));
  y = V::fma(V::set(-0.5f), f * f, y);
  y = V::fma(e, V::set(0.693359375f), f + y);
  const V zero = V::set(0.0f);
  y = V::select(V::lt(x, V::set(__builtin_inff())), y, x);  // infinity and NaN pass
  y = V::select(V::lt(x, zero), V::set(__builtin_nanf("")), y);
  return V::select(V::eq(x, zero), V::set(-__builtin_inff()), y);
}

template <class V>
PIXELFAST_BOTH inline V vtanh(V x) {
  const V a = vabs(x);
  const V z = a * a;
  const V p = polynomial(z, V::set(-5.70498872745e-3f), 2.06390887954e-2f, -5.37397155531e-2f,
                         1.33314422036e-1f, -3.33332819422e-1f);
  const V near = V::fma(p * z, a, a);
  const V far = V::set(1.0f) - V::set(2.0f) / (vexp_within(from_above(a + a)) + V::set(1.0f));
  const V magnitude = V::select(V::lt(a, V::set(0.625f)), near, far);
  return V::floats(V::bits(magnitude) | (V::bits(x) & V::Int::set(INT32_MIN)));
}

template <class V>
PIXELFAST_BOTH inline V vsigmoid(V x) {
  const V t = vexp_within(from_below(vneg(vabs(x))));
  const V one = V::set(1.0f);
  const V sum = one + t;
  const V gained = (sum - one) - t;  // by rounding: exactly, since t <= 1
  const V y = V::select(V::lt(x, V::set(0.0f)), t, one) / sum;
  return V::fma(y, gained, y);
}

// tanh(a) * sigmoid(b) with one division: for a > 0, e = e^2a - 1 and t = e^-b,
// e / ((e + 2) * (1 + t)).
template <class V>
PIXELFAST_BOTH inline V vgate(V a, V b) {
  const V e = vexpm1_within(V::min(V::set(40.0f), vabs(a) + vabs(a)));
  const V t = vexp_within(from_below(vneg(vabs(b))));
  const V sum = e + V::set(2.0f);
  const V magnitude = e * V::select(V::lt(b, V::set(0.0f)), t, V::set(1.0f)) / V::fma(sum, t, sum);
  return V::floats(V::bits(magnitude) | (V::bits(a) & V::Int::set(INT32_MIN)));
}

template <class V>
PIXELFAST_BOTH inline V vrelu(V x) {
  return V::max(V::set(0.0f), x);
}

template <class V>
PIXELFAST_BOTH inline V velu(V x) {
  return V::select(V::lt(V::set(0.0f), x), x, vexpm1(x));
}

}  // namespace pixelfast
