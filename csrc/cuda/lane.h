// What a thread computes with: one lane, and the functions of expressions. Part of walk.h.
#pragma once

#include "core/math.h"
#include "core/program.h"
#include "cuda/flat.h"
#include "cuda/simt.h"

namespace pixelfast {
namespace cuda {
namespace {

#include "core/vec_scalar.h"

PIXELFAST_DEVICE inline float fma_of(float a, float b, float c) { return Lanes::fma({a}, {b}, {c}).v; }

// out[e] = fn(a[e], b[e]) for the elements of a tile, all of them at once.
PIXELFAST_DEVICE inline void apply(Fn fn, const float* a, const float* b, float* out) {
  const auto each = [&](auto function) {
    for (int e = 0; e < kElements; ++e) out[e] = function(Lanes{a[e]}, Lanes{b[e]}).v;
  };
  switch (fn) {
    case Fn::add:
      return each([](Lanes x, Lanes y) { return x + y; });
    case Fn::sub:
      return each([](Lanes x, Lanes y) { return x - y; });
    case Fn::mul:
      return each([](Lanes x, Lanes y) { return x * y; });
    case Fn::div:
      return each([](Lanes x, Lanes y) { return x / y; });
    case Fn::gate:
      return each([](Lanes x, Lanes y) { return vgate(x, y); });
    case Fn::min:
      return each([](Lanes x, Lanes y) { return Lanes::min(x, y); });
    case Fn::max:
      return each([](Lanes x, Lanes y) { return Lanes::max(x, y); });
    case Fn::neg:
      return each([](Lanes x, Lanes) { return vneg(x); });
    case Fn::abs:
      return each([](Lanes x, Lanes) { return vabs(x); });
    case Fn::sqrt:
      return each([](Lanes x, Lanes) { return Lanes::sqrt(x); });
    case Fn::exp:
      return each([](Lanes x, Lanes) { return vexp(x); });
    case Fn::log:
      return each([](Lanes x, Lanes) { return vlog(x); });
    case Fn::tanh:
      return each([](Lanes x, Lanes) { return vtanh(x); });
    case Fn::sigmoid:
      return each([](Lanes x, Lanes) { return vsigmoid(x); });
    case Fn::relu:
      return each([](Lanes x, Lanes) { return vrelu(x); });
    case Fn::elu:
      return each([](Lanes x, Lanes) { return velu(x); });
    default:
      return each([](Lanes x, Lanes) { return x; });
  }
}

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
