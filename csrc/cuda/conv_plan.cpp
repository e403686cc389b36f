// Which way a masked convolution goes, and how its sums are shared among blocks.
#include <algorithm>

#include "cuda/conv.h"

namespace pixelfast {
namespace cuda {
namespace {

constexpr int64_t kPart = 512;    // positions at least, of a part of a weight's gradient
constexpr int kBlocksAtOnce = 2;  // of a multiprocessor, as registers go
constexpr int kReserved = 1024;   // bytes of shared memory that a block takes for itself

int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

int units_of(const ConvShape& a) { return static_cast<int>(over(a.inputs, kUnit)); }

int64_t positions_of(const ConvShape& a) { return int64_t{a.batch} * a.height * a.width; }

// Finds the rows of the kernel, and which way to go.
void survey(ConvShape& a, const ConvDevice& device) {
  a.n_rows = 0, a.left = 0;
  int32_t right = 0;
  for (int t = 0; t < a.n_taps; ++t) {
    if (t == 0 || a.tap_y[t] != a.tap_y[t - 1]) a.row_taps[a.n_rows++] = static_cast<int16_t>(t);
    a.left = t == 0 ? a.tap_x[t] : std::min<int32_t>(a.left, a.tap_x[t]);
    right = t == 0 ? a.tap_x[t] : std::max<int32_t>(right, a.tap_x[t]);
  }
  a.row_taps[a.n_rows] = static_cast<int16_t>(a.n_taps);
  a.span = right - a.left;
  a.columns = std::max(a.width, a.in_width);
  const bool halves = a.type == Type::float16 || a.type == Type::bfloat16;
  a.tensor_cores = halves && device.capability >= 80 && a.span <= kMostSpan;
}

int64_t grid_positions(const ConvShape& a) { return int64_t{a.batch} * a.height * a.columns; }

// Whether eight neighbouring channels lie in 16 bytes, wherever they start.
bool in_units(const void* address, const Strides& s, int channels) {
  const bool together = s.c == 1 && channels % kUnit == 0 && reinterpret_cast<uintptr_t>(address) % 16 == 0;
  return together && s.n % kUnit == 0 && s.y % kUnit == 0 && s.x % kUnit == 0;
}

int64_t column_blocks(const ConvArgs& a) {
  const int wide = a.tensor_cores ? kTensorColumns : kSide;
  return a.gate ? over(a.outputs / 2, wide / 2) : over(a.outputs, wide);
}

// Sums of one part, of the weight and of the bias.
struct Sums {
  int64_t row_blocks, column_blocks, count;
};
Sums sums_of(const WeightGradArgs& a) {
  if (a.tensor_cores) {  // rows: taps and inputs; columns: outputs
    const int64_t rows = std::max<int64_t>(over(over(a.inputs, kStep) * a.n_taps, kTapsOfTile), 1);
    const int64_t columns = over(a.outputs, kTensorColumns);
    return {rows, columns, (rows * kTensorRows + 1) * columns * kTensorColumns};
  }
  const int64_t all = int64_t{a.n_taps} * a.inputs + 1;  // rows: outputs; columns: taps and inputs, the bias
  return {over(a.outputs, kSide), over(all, kSide), a.outputs * all};
}

// Of a multiprocessor.
int blocks_at_once(const WeightGradArgs& a, const ConvDevice& device) {
  if (!a.tensor_cores) return kBlocksAtOnce;
  const int nbytes = stage_start(a, kStages) * static_cast<int>(sizeof(uint32_t)) + kReserved;
  return std::clamp(device.shared_nbytes / nbytes, 1, kBlocksAtOnce);
}

}  // namespace

size_t plan(ConvArgs& a, const ConvDevice& device) {
  survey(a, device);
  a.at_once = in_units(a.in, a.in_strides, a.inputs);
  if (!a.tensor_cores) return 0;
  const int units = units_of(a), left = units % kUnitsOfStep;
  a.steps = units / kUnitsOfStep * a.n_taps;
  for (int r = 0; r < a.n_rows; ++r) {
    a.steps += static_cast<int>(over((a.row_taps[r + 1] - a.row_taps[r]) * left, kUnitsOfStep));
  }
  return static_cast<size_t>(column_blocks(a)) * a.steps * kTensorColumns * kStep * sizeof(uint16_t);
}

size_t plan(WeightGradArgs& a, const ConvDevice& device) {
  survey(a, device);
  a.at_once = in_units(a.in, a.in_strides, a.inputs) && in_units(a.grad, a.grad_strides, a.outputs);
  const Sums sums = sums_of(a);
  const int64_t at_once = int64_t{blocks_at_once(a, device)} * device.processors;
  const int64_t shares = at_once / std::max<int64_t>(sums.row_blocks * sums.column_blocks, 1);
  a.splits = static_cast<int32_t>(std::max<int64_t>(std::min(shares, over(positions_of(a), kPart)), 1));
  a.part = sums.count;
  return static_cast<size_t>(a.splits) * sums.count * (a.type == Type::float64 ? 8 : 4);
}

int64_t pack_blocks(const ConvArgs& a) { return column_blocks(a) * a.steps; }

int64_t conv_blocks(const ConvArgs& a) {
  if (!a.tensor_cores) return over(positions_of(a), kSide) * column_blocks(a);
  return over(grid_positions(a), kTensorRows) * column_blocks(a);
}

int64_t weight_grad_blocks(const WeightGradArgs& a) {
  const Sums sums = sums_of(a);
  return sums.row_blocks * sums.column_blocks * a.splits;
}

int64_t weight_sum_blocks(const WeightGradArgs& a) {
  return over((int64_t{a.n_taps} * a.inputs + 1) * a.outputs, kConvThreads);
}

}  // namespace cuda
}  // namespace pixelfast
