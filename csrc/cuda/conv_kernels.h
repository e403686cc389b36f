// Masked convolutions a multiply-add at a time: the kernels for every type, and for every GPU. Included where
// simt.h is CUDA's, and where it is the emulation.
#pragma once

#include "core/math.h"
#include "cuda/conv_places.h"

namespace pixelfast {
namespace cuda {
namespace {

#include "core/vec_scalar.h"

// What sums of a type are: float, but for double.
template <class T>
struct SumOf {
  using Type = float;
};
template <>
struct SumOf<double> {
  using Type = double;
};

// Two tiles of terms: kDeep of them for kSide rows, and for kSide columns.
template <class Sum>
struct ConvMemory {
  simt::Shared<Sum, kDeep * kSide> rows, columns;
};

PIXELFAST_DEVICE inline float tanh_of(float x) { return vtanh(Lanes{x}).v; }
PIXELFAST_DEVICE inline float sigmoid_of(float x) { return vsigmoid(Lanes{x}).v; }
PIXELFAST_DEVICE inline double tanh_of(double x) { return ::tanh(x); }
PIXELFAST_DEVICE inline double sigmoid_of(double x) { return 1.0 / (1.0 + ::exp(-x)); }

template <class T>
PIXELFAST_DEVICE inline typename SumOf<T>::Type load_as_sum(const void* p, int64_t at) {
  return static_cast<typename SumOf<T>::Type>(static_cast<const T*>(p)[at]);
}

PIXELFAST_DEVICE inline float multiply_add(float a, float b, float c) { return Lanes::fma({a}, {b}, {c}).v; }
PIXELFAST_DEVICE inline double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }

// acc[i][j] += the sum over k of rows[k][4 * ty + i] * columns[k][tx + 16 * j].
template <class Sum>
PIXELFAST_DEVICE inline void multiply(const ConvMemory<Sum>& memory, int ty, int tx, Sum (&acc)[4][4]) {
  for (int k = 0; k < kDeep; ++k) {
    Sum a[4], b[4];
    for (int i = 0; i < 4; ++i) a[i] = memory.rows.get(k * kSide + 4 * ty + i);
    for (int j = 0; j < 4; ++j) b[j] = memory.columns.get(k * kSide + tx + 16 * j);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) acc[i][j] = multiply_add(a[i], b[j], acc[i][j]);
    }
  }
}

// Which output channels the columns of a block are. With a gate, half of them are of each factor.
struct Columns {
  int start, wide, half, outputs;
  bool gate;

  PIXELFAST_DEVICE Columns(const ConvArgs& a, int block)
      : start(block * (a.gate ? kSide / 2 : kSide)),
        wide(a.gate ? kSide / 2 : kSide),
        half(a.outputs / 2),
        outputs(a.outputs),
        gate(a.gate != 0) {}

  PIXELFAST_DEVICE int channel(int column) const {  // -1: none
    const bool second = gate && column >= wide;
    const int c = start + (second ? column - wide : column);
    return c < (gate ? half : outputs) ? c + (second ? half : 0) : -1;
  }
};

// Bias, condition, gate and residual of the sums of one position.
template <class T, class Sum>
PIXELFAST_DEVICE void finish(const ConvArgs& a, const Position& at, const Columns& columns, int tx,
                             Sum (&y)[4]) {
  PIXELFAST_UNROLL()
  for (int j = 0; j < 4; ++j) {
    const int channel = columns.channel(tx + 16 * j);
    if (channel < 0) continue;
    if (a.bias != nullptr) y[j] += load_as_sum<T>(a.bias, channel);
    if (a.condition != nullptr)
      y[j] += load_as_sum<T>(a.condition, place_of(a.condition_strides, at, channel));
    if (!a.gate) continue;
    y[j] = j < 2 ? tanh_of(y[j]) : sigmoid_of(y[j]);
    static_cast<T*>(a.factors)[place_of(a.factor_strides, at, channel)] = static_cast<T>(y[j]);
  }
  PIXELFAST_UNROLL()
  for (int j = 0; j < 4; ++j) {
    const int channel = columns.channel(tx + 16 * j);
    if (channel < 0 || (a.gate && j >= 2)) continue;
    Sum result = a.gate ? y[j] * y[(j + 2) % 4] : y[j];
    if (a.residual != nullptr)
      result += load_as_sum<T>(a.residual, place_of(a.residual_strides, at, channel));
    static_cast<T*>(a.out)[place_of(a.out_strides, at, channel)] = static_cast<T>(result);
  }
}

// Of a tile a thread brings one row and one column, of every fourth term.
constexpr int kTermsApart = kConvThreads / kSide;
static_assert(kConvThreads % kSide == 0 && kDeep % kTermsApart == 0, "a thread has one row and one column");

// What a tap and an input channel give to a position; zero outside the grid.
template <class T, class Args>
PIXELFAST_DEVICE typename SumOf<T>::Type input_of(const Args& a, Position at, int tap, int c) {
  at.y += a.tap_y[tap], at.x += a.tap_x[tap];
  const bool inside = at.y >= 0 && at.y < a.in_height && at.x >= 0 && at.x < a.in_width;
  return inside ? load_as_sum<T>(a.in, place_of(a.in_strides, at, c)) : 0;
}

// The weight from a tap and an input channel to an output channel, if it is live.
template <class T>
PIXELFAST_DEVICE typename SumOf<T>::Type weight_of(const ConvArgs& a, int channel, int tap, int c) {
  return is_live(a, channel, c, tap) ? load_as_sum<T>(a.weight, weight_place(a, channel, c, tap)) : 0;
}

// One tile of positions times output channels.
template <class T>
PIXELFAST_DEVICE void conv_block(const ConvArgs& a, ConvMemory<typename SumOf<T>::Type>& memory) {
  using Sum = typename SumOf<T>::Type;
  const int thread = simt::thread(), ty = thread / 16, tx = thread % 16;
  const int64_t positions = static_cast<int64_t>(a.batch) * a.height * a.width;
  const int wide = a.gate ? kSide / 2 : kSide;
  const int column_blocks = ((a.gate ? a.outputs / 2 : a.outputs) + wide - 1) / wide;
  const int64_t first = static_cast<int64_t>(simt::block() / column_blocks) * kSide;
  const Columns columns(a, simt::block() % column_blocks);
  Sum acc[4][4] = {};
  const int64_t depth = static_cast<int64_t>(a.n_taps) * a.inputs, p = first + thread % kSide;
  const Position at = position_of(p, a.height, a.width);
  const int channel = columns.channel(thread % kSide);
  int tap = 0, c = thread / kSide;  // of the next term
  for (int64_t k0 = 0; k0 < depth; k0 += kDeep) {
    for (int e = thread; e < kDeep * kSide; e += kConvThreads) {
      for (; c >= a.inputs; c -= a.inputs) ++tap;
      const bool there = tap < a.n_taps;
      memory.rows.set(e, there && p < positions ? input_of<T>(a, at, tap, c) : 0);
      memory.columns.set(e, there && channel >= 0 ? weight_of<T>(a, channel, tap, c) : 0);
      c += kTermsApart;
    }
    simt::sync_block();
    multiply(memory, ty, tx, acc);
    simt::sync_block();
  }
  PIXELFAST_UNROLL()
  for (int i = 0; i < 4; ++i) {
    const int64_t mine = first + 4 * ty + i;
    if (mine < positions) finish<T>(a, position_of(mine, a.height, a.width), columns, tx, acc[i]);
  }
}

// One tile of output channels times (taps and input channels), over the positions of one split. The last
// column is the bias, whose input is 1.
template <class T>
PIXELFAST_DEVICE void weight_grad_block(const WeightGradArgs& a,
                                        ConvMemory<typename SumOf<T>::Type>& memory) {
  using Sum = typename SumOf<T>::Type;
  const int thread = simt::thread(), ty = thread / 16, tx = thread % 16;
  const int64_t positions = static_cast<int64_t>(a.batch) * a.height * a.width;
  const int64_t all = static_cast<int64_t>(a.n_taps) * a.inputs + 1;
  const int64_t column_blocks = (all + kSide - 1) / kSide, row_blocks = (a.outputs + kSide - 1) / kSide;
  const int64_t split = simt::block() / (column_blocks * row_blocks);
  const int64_t tile = simt::block() % (column_blocks * row_blocks);
  const int64_t start = tile % column_blocks * kSide;
  const int first = static_cast<int>(tile / column_blocks * kSide);
  const int64_t begin = positions * split / a.splits, end = positions * (split + 1) / a.splits;
  const int64_t column = start + thread % kSide;
  const int channel = first + thread % kSide;
  const int tap = static_cast<int>(column < all - 1 ? column / a.inputs : 0);
  const int c = static_cast<int>(column < all - 1 ? column % a.inputs : 0);
  Position at = position_of(begin + thread / kSide, a.height, a.width);
  Sum acc[4][4] = {};
  for (int64_t p0 = begin; p0 < end; p0 += kDeep) {
    for (int e = thread; e < kDeep * kSide; e += kConvThreads) {
      const bool there = p0 + e / kSide < end;
      Sum g = 0, x = 0;
      if (there && channel < a.outputs) g = load_as_sum<T>(a.grad, place_of(a.grad_strides, at, channel));
      if (there && column < all) x = column == all - 1 ? 1 : input_of<T>(a, at, tap, c);
      memory.rows.set(e, g), memory.columns.set(e, x);
      at.advance(kTermsApart, a.height, a.width);
    }
    simt::sync_block();
    multiply(memory, ty, tx, acc);
    simt::sync_block();
  }
  Sum* parts = static_cast<Sum*>(a.parts) + split * a.part;
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int64_t row = first + 4 * ty + i, to = start + tx + 16 * j;
      if (row < a.outputs && to < all) parts[row * all + to] = acc[i][j];
    }
  }
}

// Where a part has the sums of a weight and of a bias.
struct ChainParts {
  static PIXELFAST_DEVICE int64_t weight(const WeightGradArgs& a, int channel, int tap, int input) {
    return channel * all(a) + int64_t{tap} * a.inputs + input;
  }
  static PIXELFAST_DEVICE int64_t bias(const WeightGradArgs& a, int channel) {
    return (channel + 1) * all(a) - 1;
  }
  static PIXELFAST_DEVICE int64_t all(const WeightGradArgs& a) { return int64_t{a.n_taps} * a.inputs + 1; }
};

// A thread for each weight and bias: its parts are added in order, so that the result is the same every time.
template <class T, class Parts>
PIXELFAST_DEVICE void weight_grad_sum(const WeightGradArgs& a) {
  using Sum = typename SumOf<T>::Type;
  const int64_t weights = static_cast<int64_t>(a.n_taps) * a.inputs;
  const int64_t k = static_cast<int64_t>(simt::block()) * simt::threads() + simt::thread();
  if (k >= (weights + 1) * a.outputs) return;
  const int channel = static_cast<int>(k % a.outputs);
  const bool is_bias = k / a.outputs == weights;
  if (is_bias && a.bias == nullptr) return;
  const int tap = is_bias ? 0 : static_cast<int>(k / a.outputs / a.inputs);
  const int input = is_bias ? 0 : static_cast<int>(k / a.outputs % a.inputs);
  if (!is_bias && !is_live(a, channel, input, tap)) return;
  const Sum* const first = static_cast<const Sum*>(a.parts) +
                           (is_bias ? Parts::bias(a, channel) : Parts::weight(a, channel, tap, input));
  Sum sum = 0;
  for (int s = 0; s < a.splits; ++s) sum += first[s * a.part];
  T* const to = is_bias ? static_cast<T*>(a.bias) + channel
                        : static_cast<T*>(a.weight) + weight_place(a, channel, input, tap);
  *to = static_cast<T>(sum);
}

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
