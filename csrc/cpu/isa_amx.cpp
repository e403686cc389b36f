// AMX with BF16: the products of the bf16 mode as products of tiles, sixteen rows times sixteen outputs times
// sixteen pairs at once. Everything else in that mode is AVX-512's.
#include <immintrin.h>

#include "cpu/kernels.h"

namespace pixelfast {
namespace {

constexpr int kSide = 16;     // rows, outputs and pairs of a tile
constexpr int kFetched = 16;  // lines fetched ahead for each step through the depth

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// So that it is in memory: some compilers do not know that tiles are read from there.
inline void written(const void* p) { __asm__ volatile("" : : "r"(p) : "memory"); }

// Tiles 0 to 3: sums, of two groups of rows times two vectors; 4 and 5: the rows; 6 and 7: weights.
void configure(int rows, int more_rows) {
  TileConfig config;
  const int used[8] = {rows, rows, more_rows, more_rows, rows, more_rows, kSide, kSide};
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = static_cast<uint8_t>(used[i] > 0 ? used[i] : 1);
    config.row_bytes[i] = 64;
  }
  written(&config);
  _tile_loadconfig(&config);
}

// Begins the sums of some rows with one vector of outputs.
template <class Load>
void begin(const ProductArgs& p, int row, int rows, int vector, Load load) {
  if (p.start == nullptr) return load(p.bias + vector * kSide, 0);
  alignas(64) float sums[kSide * kSide];
  const auto mask = static_cast<__mmask16>((1u << p.start_lanes[vector]) - 1);
  for (int r = 0; r < rows; ++r) {
    const float* const from = p.start[row + r] + p.start_column[vector];
    _mm512_store_ps(sums + r * kSide, _mm512_maskz_loadu_ps(mask, from));
  }
  written(sums);
  load(sums, 64);
}

// Keeps the sums of some rows with one vector of outputs.
template <class Store>
void keep(const ProductArgs& p, int row, int rows, int vector, Store store) {
  float* const y = p.outputs[row] + p.column + vector * p.vector_stride;
  const int rest = p.columns - vector * kSide;
  if (p.row_stride > 0 && rest >= kSide) return store(y, p.row_stride * 4);
  alignas(64) float sums[kSide * kSide];
  store(sums, 64);
  const __mmask16 mask = rest >= kSide ? 0xFFFF : static_cast<__mmask16>((1u << rest) - 1);
  for (int r = 0; r < rows; ++r) {
    const int64_t at = p.column + vector * p.vector_stride;
    __m512 x = _mm512_load_ps(sums + r * kSide);
    for (const After *a = p.after, *end = a + p.n_after; a != end; ++a) {
      if (a->fn == Fn::add) {
        x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, a->rows[row + r] + at));
      } else if (a->fn == Fn::store) {
        _mm512_mask_storeu_ps(const_cast<float*>(a->rows[row + r] + at), mask, x);
      } else {
        x = _mm512_max_ps(_mm512_setzero_ps(), x);
      }
    }
    _mm512_mask_storeu_ps(p.outputs[row + r] + at, mask, x);
  }
}

// Rows from `row` on, in one or two groups, times one or two vectors. Returns how far it has fetched ahead.
template <bool kMoreRows, bool kTwoVectors>
const float* product_tiles(const ProductArgs& p, int row, int rows, int more_rows, int vector,
                           const float* ahead) {
  begin(p, row, rows, vector, [](const float* x, int64_t stride) { _tile_loadd(0, x, stride); });
  if (kTwoVectors)
    begin(p, row, rows, vector + 1, [](const float* x, int64_t stride) { _tile_loadd(1, x, stride); });
  if (kMoreRows) {
    begin(p, row + rows, more_rows, vector,
          [](const float* x, int64_t stride) { _tile_loadd(2, x, stride); });
    if (kTwoVectors) {
      begin(p, row + rows, more_rows, vector + 1,
            [](const float* x, int64_t stride) { _tile_loadd(3, x, stride); });
    }
  }
  const int64_t to_row = p.input_stride * 4, to_pair = p.weight_stride * 4;
  const float *x = p.inputs[row], *more = kMoreRows ? p.inputs[row + rows] : nullptr;
  const float* w = p.weights + vector * kSide;
  const int depth = p.n_taps > 0 ? p.tap_channels[0] : 0;
  for (int k = 0; k < depth; k += kSide, w += kSide * p.weight_stride) {
    for (int i = 0; i < kFetched && ahead < p.ahead_end; ++i, ahead += kLine) __builtin_prefetch(ahead, 0, 2);
    _tile_loadd(6, w, to_pair);
    _tile_loadd(4, x + k, to_row);
    _tile_dpbf16ps(0, 4, 6);
    if (kTwoVectors) {
      _tile_loadd(7, w + kSide, to_pair);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kMoreRows) {
      _tile_loadd(5, more + k, to_row);
      _tile_dpbf16ps(2, 5, 6);
      if (kTwoVectors) _tile_dpbf16ps(3, 5, 7);
    }
  }
  keep(p, row, rows, vector, [](float* y, int64_t stride) { _tile_stored(0, y, stride); });
  if (kTwoVectors)
    keep(p, row, rows, vector + 1, [](float* y, int64_t stride) { _tile_stored(1, y, stride); });
  if (kMoreRows) {
    row += rows;
    keep(p, row, more_rows, vector, [](float* y, int64_t stride) { _tile_stored(2, y, stride); });
    if (kTwoVectors) {
      keep(p, row, more_rows, vector + 1, [](float* y, int64_t stride) { _tile_stored(3, y, stride); });
    }
  }
  return ahead;
}

void product(const ProductArgs& p) {
  const float* ahead = p.ahead;
  for (int row = 0, left = p.rows; left > 0;) {
    const int groups = (left + kSide - 1) / kSide;
    const int rows = (left + groups - 1) / groups;
    const int more = groups > 1 ? (left - rows + groups - 2) / (groups - 1) : 0;
    configure(rows, more);
    for (int v = 0; v < p.vectors; v += 2) {
      const bool two = v + 1 < p.vectors;
      if (more > 0) {
        ahead = two ? product_tiles<true, true>(p, row, rows, more, v, ahead)
                    : product_tiles<true, false>(p, row, rows, more, v, ahead);
      } else {
        ahead = two ? product_tiles<false, true>(p, row, rows, 0, v, ahead)
                    : product_tiles<false, false>(p, row, rows, 0, v, ahead);
      }
    }
    row += rows + more;
    left -= rows + more;
  }
}

void leave() { _tile_release(); }

#include "cpu/pairs.inl"

}  // namespace

const Bf16Kernels kAmxKernels = {"amx", kSide, product, round_to_pairs, leave};

}  // namespace pixelfast
