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

#include "cpu/product.inl"

}  // namespace

// Rounds to the nearest even, and makes denormals zero.
void round_to_pairs(const float* x, int n, float* pairs) {
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i));
    _mm512_storeu_ps(pairs + i / 2, reinterpret_cast<__m512>(rounded));
  }
  for (; i < n; i += 16) {
    const __mmask16 mask = n - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i));
    _mm256_storeu_ps(pairs + i / 2, reinterpret_cast<__m256>(rounded));
  }
}

const Bf16Kernels kAvx512Bf16Kernels = {"avx512bf16", 1, product_by_rows, round_to_pairs, nullptr};

}  // namespace pixelfast
