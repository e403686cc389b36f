// AVX-512 with BF16: the products of the bf16 mode. Everything else in that mode is AVX-512's.
#include <immintrin.h>

#include "core/math.h"
#include "cpu/kernels.h"

namespace pixelfast {
namespace {
#include "cpu/vec_avx512.h"

constexpr int kAccumulators = 24;  // registers for sums

// Pairs of bf16: one for each of sixteen outputs.
inline Lanes multiply(Lanes x, Lanes weight, Lanes sum) {
  const auto a = reinterpret_cast<__m512bh>(x.v), b = reinterpret_cast<__m512bh>(weight.v);
  return {_mm512_dpbf16_ps(sum.v, a, b)};
}

#include "cpu/pairs.inl"
#include "cpu/product.inl"

}  // namespace

const Bf16Kernels kAvx512Bf16Kernels = {"avx512bf16", 1, product_by_rows, round_to_pairs, nullptr};

}  // namespace pixelfast
