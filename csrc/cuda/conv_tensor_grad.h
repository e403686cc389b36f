// The gradients of weight and bias on tensor cores: a product whose terms are positions.
//
// A block has a tile of 32 units of input channels, each of one live tap, and 64 output channels, over the
// positions of one part. A step is 32 positions. Lines are positions, so matrices are turned as they are
// loaded.
#pragma once

#include "cuda/conv_tiles.h"

namespace pixelfast {
namespace cuda {
namespace {

constexpr int kRowUnits = kTensorRows / kUnit, kColumnUnits = kTensorColumns / kUnit;

struct GradTiles {
  static constexpr int kRowWords = kStep * kTensorRows / 2, kColumnWords = kStep * kTensorColumns / 2;
  static constexpr int kColumns = kStages * kRowWords;
  simt::Shared<uint32_t, kColumns + kStages * kColumnWords> words;
};

// Units are in the order of parts: of 32 input channels tap by tap, then of the next, so that the units of a
// tile read the same places.
struct TapUnit {
  int tap = 0, channel = 0;
  bool live;

  PIXELFAST_DEVICE TapUnit(const WeightGradArgs& a, int64_t u) {
    const int units = (a.inputs + kUnit - 1) / kUnit, whole = units / kUnitsOfStep;
    live = u < int64_t{a.n_taps} * units;
    if (!live) return;
    const int64_t of_chunk = int64_t{a.n_taps} * kUnitsOfStep;
    const int chunk = least(static_cast<int>(u / of_chunk), whole);
    const int among = static_cast<int>(u - chunk * of_chunk);
    const int wide = chunk < whole ? kUnitsOfStep : units % kUnitsOfStep;
    tap = among / wide, channel = (chunk * kUnitsOfStep + among % wide) * kUnit;
  }
};

// Where a part has the sum of a tap and an input channel.
PIXELFAST_DEVICE inline int64_t part_row(const WeightGradArgs& a, int tap, int input) {
  const int units = (a.inputs + kUnit - 1) / kUnit, chunk = input / kStep;
  const int wide = least(units - chunk * kUnitsOfStep, kUnitsOfStep);
  const int64_t unit = int64_t{chunk} * a.n_taps * kUnitsOfStep + tap * wide + input % kStep / kUnit;
  return unit * kUnit + input % kUnit;
}

// What a thread brings of one operand: the same unit of every so many positions.
template <int kUnits, bool kAtOnce, bool kKept>
struct GradCopies {
  static constexpr int kApart = kTensorThreads / kUnits;
  Position at;
  int64_t left;  // positions
  int channels;

  PIXELFAST_DEVICE GradCopies(const WeightGradArgs& a, int64_t begin, int64_t end, int channels)
      : at(position_of(begin + simt::thread() / kUnits, a.height, a.width)),
        left(end - begin - simt::thread() / kUnits),
        channels(channels) {}

  PIXELFAST_DEVICE void start(const WeightGradArgs& a, GradTiles& memory, int begin, const void* from,
                              const Strides& strides, int dy, int dx, int height, int width, int64_t shift) {
    for (int i = 0; i < kStep / kApart; ++i) {
      const Position source = {at.n, at.y + dy, at.x + dx};
      const bool inside = left > 0 && static_cast<uint32_t>(source.y) < static_cast<uint32_t>(height) &&
                          static_cast<uint32_t>(source.x) < static_cast<uint32_t>(width);
      const int line = simt::thread() / kUnits + i * kApart;
      bring<kAtOnce, kKept>(memory.words, begin + word_of<kUnits>(line, simt::thread() % kUnits), from,
                            place_of(strides, source, 0) + shift, strides.c, inside ? channels : 0);
      at.advance(kApart, a.height, a.width), left -= kApart;
    }
  }
};

// `kAtOnce`: whether units of both operands are read at once.
template <simt::Half kHalf, bool kAtOnce>
PIXELFAST_DEVICE void tensor_weight_grad_block(const WeightGradArgs& a, GradTiles& memory) {
  const int64_t units = int64_t{a.n_taps} * ((a.inputs + kUnit - 1) / kUnit);
  const int64_t of_rows = (units + kRowUnits - 1) / kRowUnits, row_blocks = of_rows > 0 ? of_rows : 1;
  const int column_blocks = (a.outputs + kTensorColumns - 1) / kTensorColumns;
  const int64_t split = simt::block() / (row_blocks * column_blocks);
  const int64_t tile = simt::block() % (row_blocks * column_blocks), row_block = tile / column_blocks;
  const int first = static_cast<int>(tile % column_blocks) * kTensorColumns;
  const int64_t positions = static_cast<int64_t>(a.batch) * a.height * a.width;
  const int64_t begin = positions * split / a.splits, end = positions * (split + 1) / a.splits;
  const int steps = static_cast<int>((end - begin + kStep - 1) / kStep);

  const int lane = simt::lane(), warp = simt::thread() / simt::kWarp;
  const TapUnit unit(a, row_block * kRowUnits + simt::thread() % kRowUnits);
  const int channel = first + simt::thread() % kColumnUnits * kUnit;
  const int dy = a.n_taps > 0 ? a.tap_y[unit.tap] : 0, dx = a.n_taps > 0 ? a.tap_x[unit.tap] : 0;
  GradCopies<kRowUnits, kAtOnce, true> inputs(a, begin, end, unit.live ? a.inputs - unit.channel : 0);
  GradCopies<kColumnUnits, kAtOnce, false> grads(a, begin, end, a.outputs - channel);
  const auto start = [&](int stage) {
    inputs.start(a, memory, stage * GradTiles::kRowWords, a.in, a.in_strides, dy, dx, a.in_height, a.in_width,
                 unit.channel * a.in_strides.c);
    grads.start(a, memory, GradTiles::kColumns + stage * GradTiles::kColumnWords, a.grad, a.grad_strides, 0,
                0, a.height, a.width, channel * a.grad_strides.c);
  };

  // The bias's gradient is a product with ones; each warp has a quarter of its columns.
  const bool with_bias = a.bias != nullptr && row_block == 0;
  const uint32_t one = simt::narrow<kHalf>(1.0f), ones = one | one << 16;
  const uint32_t all_ones[4] = {ones, ones, ones, ones};
  float of_bias[2][4] = {};
  Sums sums = {};
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) start(s);
    simt::group_copies();
  }
  for (int s = 0; s < steps; ++s) {
    simt::wait_for_copies<kStages - 2>();
    simt::sync_block();
    if (s + kStages - 1 < steps) start((s + kStages - 1) % kStages);
    simt::group_copies();
    const int rows = s % kStages * GradTiles::kRowWords;
    const int columns = GradTiles::kColumns + s % kStages * GradTiles::kColumnWords;
    for (int term = 0; term < kStep; term += 16) {
      Fragments f;
      for (int i = 0; i < 4; ++i) {
        const int line = term + lane % 8 + lane / 16 * 8, among = 8 * warp + 2 * i + lane / 8 % 2;
        simt::load_matrices_turned(memory.words, rows + word_of<kRowUnits>(line, among), f.rows[i]);
      }
      for (int j = 0; j < 4; ++j) {
        uint32_t found[4];
        const int word = word_of<kColumnUnits>(term + lane % 16, 2 * j + lane / 16);
        simt::load_matrices_turned(memory.words, columns + word, found);
        f.set_columns(j, found);
      }
      f.multiply<kHalf>(sums);
      for (int j = 0; j < 8; ++j) {
        if (with_bias && j / 2 == warp) simt::multiply_halves<kHalf>(all_ones, f.columns[j], of_bias[j % 2]);
      }
    }
  }

  float* const part = static_cast<float*>(a.parts) + split * a.part;
  const int64_t wide = static_cast<int64_t>(column_blocks) * kTensorColumns;
  const int column = first + lane % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 8; ++j) {
      for (int e = 0; e < 4; ++e) {
        const int64_t row = row_block * kTensorRows + warp * kWarpRows + 16 * i + lane / 4 + e / 2 * 8;
        part[row * wide + column + 8 * j + e % 2] = sums[i][j][e];
      }
    }
  }
  if (with_bias && lane < 4) {
    for (int e = 0; e < 4; ++e) {
      part[row_blocks * kTensorRows * wide + column + 8 * (2 * warp + e / 2) + e % 2] = of_bias[e / 2][e % 2];
    }
  }
}

struct TileParts {
  static PIXELFAST_DEVICE int64_t weight(const WeightGradArgs& a, int channel, int tap, int input) {
    return part_row(a, tap, input) * wide(a) + channel;
  }
  static PIXELFAST_DEVICE int64_t bias(const WeightGradArgs& a, int channel) {
    return a.part - wide(a) + channel;
  }
  static PIXELFAST_DEVICE int64_t wide(const WeightGradArgs& a) {
    return (a.outputs + kTensorColumns - 1) / kTensorColumns * static_cast<int64_t>(kTensorColumns);
  }
};

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
