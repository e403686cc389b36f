// AVX-512 with BF16: the products of the bf16 mode. Everything else in that mode is AVX-512's.
#include <immintrin.h>

#include "cpu/kernels.h"

namespace pixelfast {
namespace {

using Pairs = __m512bh;  // of bf16: one pair for each of sixteen outputs

// As product_tile of kernels.inl, two channels at a time.
template <int kRows, int kCount>
const float* product_tile(const ProductArgs& p, int row, const float* ahead) {
  __m512 acc[kRows][kCount];
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v) {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) acc[r][v] = _mm512_loadu_ps(p.bias + 16 * v);
  }
  const float* w = p.weights;
  for (int t = 0; t < p.n_taps; ++t) {
    const float* in[kRows];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) in[r] = p.inputs[t * kBlockRows + row + r];
    for (int i = 0; i < p.tap_channels[t]; ++i, w += p.weight_stride) {
      if (kRows * kCount >= kFetching) {
        __builtin_prefetch(ahead, 0, 2);
        ahead += ahead < p.ahead_end ? kLine : 0;
      }
      __m512 weight[kCount];
#pragma GCC unroll 4
      for (int v = 0; v < kCount; ++v) {
        weight[v] = _mm512_loadu_ps(w + 16 * v);
        if (kRows > 1) __asm__("" : "+v"(weight[v]));  // one load, not one for each row
      }
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const Pairs x = reinterpret_cast<Pairs>(_mm512_set1_ps(in[r][i]));
#pragma GCC unroll 4
        for (int v = 0; v < kCount; ++v)
          acc[r][v] = _mm512_dpbf16_ps(acc[r][v], x, reinterpret_cast<Pairs>(weight[v]));
      }
    }
  }
  const int rest = p.columns - 16 * (kCount - 1);
  const __mmask16 last = rest >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << rest) - 1);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    float* y = p.outputs[row + r] + p.column;
#pragma GCC unroll 4
    for (int v = 0; v < kCount - 1; ++v) _mm512_storeu_ps(y + v * p.vector_stride, acc[r][v]);
    _mm512_mask_storeu_ps(y + (kCount - 1) * p.vector_stride, last, acc[r][kCount - 1]);
  }
  return ahead;
}

constexpr int kAccumulators = 24;  // registers for sums

#include "cpu/product_rows.inl"

// Rounds to the nearest even, and makes denormals zero.
void round_pairs(const float* x, int n, float* pairs) {
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = n - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i));
    _mm256_storeu_ps(pairs + i / 2, reinterpret_cast<__m256>(rounded));
  }
}

}  // namespace

const Bf16Kernels kAvx512Bf16Kernels = {product_by_rows, round_pairs};

}  // namespace pixelfast
