// What a thread computes with: one lane, and the functions of expressions. Part of walk.h.
#pragma once

#include "core/math.h"
#include "core/program.h"
#include "cuda/simt.h"

namespace pixelfast {
namespace cuda {
namespace {

#include "core/vec_scalar.h"

PIXELFAST_DEVICE inline float fma_of(float a, float b, float c) { return Lanes::fma({a}, {b}, {c}).v; }

PIXELFAST_DEVICE inline float apply(Fn fn, Lanes a, Lanes b) {
  switch (fn) {
    case Fn::add:
      return (a + b).v;
    case Fn::sub:
      return (a - b).v;
    case Fn::mul:
      return (a * b).v;
    case Fn::div:
      return (a / b).v;
    case Fn::gate:
      return vgate(a, b).v;
    case Fn::min:
      return Lanes::min(a, b).v;
    case Fn::max:
      return Lanes::max(a, b).v;
    case Fn::neg:
      return vneg(a).v;
    case Fn::abs:
      return vabs(a).v;
    case Fn::sqrt:
      return Lanes::sqrt(a).v;
    case Fn::exp:
      return vexp(a).v;
    case Fn::log:
      return vlog(a).v;
    case Fn::tanh:
      return vtanh(a).v;
    case Fn::sigmoid:
      return vsigmoid(a).v;
    case Fn::relu:
      return vrelu(a).v;
    case Fn::elu:
      return velu(a).v;
    default:
      return a.v;
  }
}

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
