// The gradients of weight and bias on tensor cores: a product whose terms are positions.
//
// A block has a tile of eight times 32 input channels, each of one live tap, and 64 output channels, over the
// positions of one part. A step is 32 positions. As in conv_tensor.h the taps of a row of the kernel read the
// same strip. Lines are positions, so matrices are turned as they are loaded.
#pragma once

#include "cuda/conv_tiles.h"

namespace pixelfast {
namespace cuda {
namespace {

// 32 input channels of a tap: in the order of parts, all taps of the first channels, then of the next.
struct TapChannels {
  int tap = 0, channel = 0, row = 0;
  bool live;

  PIXELFAST_DEVICE TapChannels(const WeightGradArgs& a, int64_t nth) {
    live = nth >= 0 && nth < int64_t{a.n_taps} * ((a.inputs + kStep - 1) / kStep);
    if (!live) return;
    tap = static_cast<int>(nth % a.n_taps), channel = static_cast<int>(nth / a.n_taps) * kStep;
    while (a.row_taps[row + 1] <= tap) ++row;
  }
  // Counts rows of the kernel, of the first channels and then of the next.
  PIXELFAST_DEVICE int strip(const WeightGradArgs& a) const { return channel / kStep * a.n_rows + row; }
};

// What a thread brings in a step: of each strip a unit of a line, and of one past 32 if there is one, and two
// units of the gradient.
template <bool kAtOnce>
struct GradCopies {
  Line near;
  Walk far, of_grad;
  int64_t left;              // positions
  int strips, row, channel;  // of the first strip

  PIXELFAST_DEVICE GradCopies(const WeightGradArgs& a, int64_t begin, int64_t end, const TapChannels& first,
                              const TapChannels& last)
      : far(a, a.in_strides, begin + a.left + line_of_thread<kAtOnce>()),
        of_grad(a, a.grad_strides, begin + line_of_thread<kAtOnce>()),
        left(end - begin - line_of_thread<kAtOnce>()),
        strips(first.live ? last.strip(a) - first.strip(a) + 1 : 0),
        row(first.row),
        channel(first.channel) {
    near = Line(a, far);
    far.advance(a, a.in_strides, kStep);
  }

  PIXELFAST_DEVICE void start(const WeightGradArgs& a, Tiles& memory, int stage, int first_output) {
    const int line = line_of_thread<kAtOnce>(), unit = unit_of_thread<kAtOnce>();
    const int64_t apart = kAtOnce ? 1 : a.in_strides.c, grads_apart = kAtOnce ? 1 : a.grad_strides.c;
    int word = stage_start(a, stage);
    for (int i = 0; i < 2; ++i) {  // of neighbouring lines different halves at a time, in different banks
      const int among = unit + (i + line) % 2 * kUnitsOfStep, c = first_output + among * kUnit;
      const bool there = left > 0 && of_grad.at.x < a.width;
      bring<kAtOnce>(memory, word + word_of<kTensorColumns / kUnit>(line, among), a.grad,
                     of_grad.place + c * grads_apart, grads_apart, there ? a.outputs - c : 0);
    }
    word += kGradWords + word_of<kUnitsOfStep>(line, unit);
    const Line lines[2] = {near, Line(a, far)};
    int r = row, c = channel + unit * kUnit;
    PIXELFAST_UNROLL(1)
    for (int i = 0; i < strips; ++i) {
      const int dy = a.tap_y[a.row_taps[r]];
      const int64_t shift = dy * a.in_strides.y + c * apart;
      for (int half = 0; half < 2; ++half) {
        if (half == 1 && line >= a.span) break;
        bring<kAtOnce>(memory, word + half * 2 * kSixteenLines<kUnitsOfStep>, a.in, lines[half].place + shift,
                       apart, lines[half].is_inside(a, dy) ? a.inputs - c : 0);
      }
      word += strip_words(a);
      if (++r == a.n_rows) r = 0, c += kStep;
    }
    near = lines[1], far.advance(a, a.in_strides, kStep);
    of_grad.advance(a, a.grad_strides, kStep), left -= kStep;
  }
};

// `kAtOnce`: whether units of both operands are read at once.
template <simt::Half kHalf, bool kAtOnce>
PIXELFAST_DEVICE void tensor_weight_grad_block(const WeightGradArgs& a) {
  Tiles& memory = simt::dynamic_memory();
  const int64_t taps = int64_t{a.n_taps} * ((a.inputs + kStep - 1) / kStep);
  const int64_t of_taps = (taps + kTapsOfTile - 1) / kTapsOfTile, row_blocks = of_taps > 0 ? of_taps : 1;
  const int column_blocks = (a.outputs + kTensorColumns - 1) / kTensorColumns;
  const int64_t split = simt::block() / (row_blocks * column_blocks);
  const int64_t tile = simt::block() % (row_blocks * column_blocks), row_block = tile / column_blocks;
  const int first = static_cast<int>(tile % column_blocks) * kTensorColumns;
  const int64_t positions = static_cast<int64_t>(a.batch) * a.height * a.columns;
  // Parts end where steps do: zero times the inputs of what comes after is not zero, where those are
  // infinite.
  const int64_t all_steps = (positions + kStep - 1) / kStep;
  const int64_t begin = kStep * (all_steps * split / a.splits);
  const int64_t past_end = kStep * (all_steps * (split + 1) / a.splits);
  const int64_t end = past_end < positions ? past_end : positions;
  const int steps = static_cast<int>((end - begin + kStep - 1) / kStep);

  const int lane = simt::lane(), warp = simt::thread() / simt::kWarp;
  const int64_t nth = row_block * kTapsOfTile, past = nth + kTapsOfTile;
  const TapChannels start(a, nth), last(a, (past < taps ? past : taps) - 1);
  GradCopies<kAtOnce> copies(a, begin, end, start, last);
  int strip[2], dx[2];  // of the warp's taps: two times 32 rows
  for (int i = 0; i < 2; ++i) {
    const TapChannels mine(a, nth + 2 * warp + i);
    strip[i] = mine.live ? (mine.strip(a) - start.strip(a)) * strip_words(a) : 0;
    dx[i] = mine.live ? a.tap_x[mine.tap] : kMostSide + 1;
  }
  const int line = lane % 8 + lane / 16 * 8;  // and 16 further
  int x[2] = {grid_position(a, begin + line).x, grid_position(a, begin + line + 16).x};
  if (simt::thread() < kZeroWords) memory.set(simt::thread(), 0);

  // The bias's gradient is a product with ones; each warp has a quarter of its columns.
  const bool with_bias = a.bias != nullptr && row_block == 0;
  const uint32_t one = simt::narrow<kHalf>(1.0f), ones = one | one << 16;
  const uint32_t all_ones[4] = {ones, ones, ones, ones};
  float of_bias[2][4] = {};
  Sums sums = {};
  PIXELFAST_UNROLL(1)
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) copies.start(a, memory, s, first);
    simt::group_copies();
  }
  int stage = 0;
  PIXELFAST_UNROLL(1)
  for (int s = 0; s < steps; ++s) {
    simt::wait_for_copies<kStages - 2>();
    simt::sync_block();
    if (s + kStages - 1 < steps) copies.start(a, memory, stage_before(stage), first);
    simt::group_copies();
    const int grads = stage_start(a, stage), strips = grads + kGradWords;
    for (int half = 0; half < 2; ++half) {
      Fragments f;
      for (int i = 0; i < 4; ++i) {
        const int tap = i / 2, unit = i % 2 * 2 + lane / 8 % 2;
        const int word = word_of<kUnitsOfStep>(16 * half + line + dx[tap] - a.left, unit);
        const bool inside =
            x[half] < a.width && static_cast<uint32_t>(x[half] + dx[tap]) < static_cast<uint32_t>(a.in_width);
        simt::load_matrices_turned(memory, inside ? strips + strip[tap] + word : zeros_for(0, word),
                                   f.rows[i]);
      }
      for (int j = 0; j < 4; ++j) {
        uint32_t found[4];
        const int word = word_of<kTensorColumns / kUnit>(16 * half + lane % 16, 2 * j + lane / 16);
        simt::load_matrices_turned(memory, grads + word, found);
        f.set_columns(j, found);
      }
      f.multiply<kHalf>(sums);
      for (int e = 0; with_bias && e < 2; ++e) {
        uint32_t mine[2] = {};
        for (int k = 0; k < 2 * 4; ++k) {
          if (k / 2 == warp) mine[k % 2] = f.columns[k / 2 * 2 + e][k % 2];
        }
        simt::multiply_halves<kHalf>(all_ones, mine, of_bias[e]);
      }
      for (x[half] += kStep; x[half] >= a.columns;) x[half] -= a.columns;
    }
    stage = stage_after(stage);
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
      part[a.part - wide + column + 8 * (2 * warp + e / 2) + e % 2] = of_bias[e / 2][e % 2];
    }
  }
}

// Where a part has the sums of a weight and of a bias.
struct TileParts {
  static PIXELFAST_DEVICE int64_t weight(const WeightGradArgs& a, int channel, int tap, int input) {
    const int64_t row = (int64_t{input / kStep} * a.n_taps + tap) * kStep + input % kStep;
    return row * wide(a) + channel;
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
