// Masked convolutions on tensor cores: what results, and the gradient of the input.
//
// A block has a tile of 256 positions and 64 output channels. A step of a sum is 32 terms: four units of
// eight input channels, each of one live tap. Input channels are taken 32 at a time, for each row of the
// kernel in turn: a strip holds those channels of 256 positions and of their neighbours, as many as the
// kernel is wide, and every tap of that row reads it, each from a line further. So what is read of the input
// is about that times the rows of the kernel, not times its taps.
#pragma once

#include "cuda/conv_tiles.h"

namespace pixelfast {
namespace cuda {
namespace {

constexpr int kStripLines = kTensorRows + kMostSpan;
constexpr int kStripWords = kStripLines * kStep / 2;
constexpr int kWeightWords = kTensorColumns * kStep / 2;

// In shared memory: strips, then tiles of weights, then zeros.
constexpr int kWeights = kStages * kStripWords;
constexpr int kZeros = kWeights + kStages * kWeightWords;
constexpr int kConvWords = kZeros + kZeroWords;
static_assert(kZeros % kZeroWords == 0, "zeros are in the banks of what they stand for");

// A step of the sums: its first unit, among those of a row of the kernel and of up to 32 input channels.
struct Step {
  int channel, row, unit;
  int units, inverse;  // of those channels, and what divides by it: 2^16 over it, rounded up
  int tap, taps;       // of the row

  PIXELFAST_DEVICE Step(const ConvArgs& a, int channel) : channel(channel) { start_row(a, 0); }

  PIXELFAST_DEVICE void start_row(const ConvArgs& a, int r) {
    row = r, unit = 0;
    units = least((a.inputs - channel + kUnit - 1) / kUnit, kUnitsOfStep);
    inverse = static_cast<int>(((1u << 16) - 1) / static_cast<uint32_t>(units > 0 ? units : 1)) + 1;
    tap = a.row_taps[r], taps = a.row_taps[r + 1] - tap;
  }
  PIXELFAST_DEVICE void next_row(const ConvArgs& a) {
    const bool last = row + 1 >= a.n_rows;
    if (last) channel += kStep;
    start_row(a, last ? 0 : row + 1);
  }
  // Whether a row ends.
  PIXELFAST_DEVICE bool next(const ConvArgs& a) {
    unit += kUnitsOfStep;
    if (unit < taps * units) return false;
    next_row(a);
    return true;
  }
};

// Which output channels a lane has: eight in a row of each half of the columns. With a gate, the halves are
// its two factors.
struct Channels {
  int first[2], count[2];

  PIXELFAST_DEVICE Channels(const ConvArgs& a, int block, int lane) {
    const int each = a.gate ? a.outputs / 2 : a.outputs;
    for (int h = 0; h < 2; ++h) {
      const int c = (a.gate ? block * kTensorColumns / 2 : block * kTensorColumns + h * kTensorColumns / 2) +
                    lane % 4 * kUnit;
      const int there = each - c;
      first[h] = a.gate && h == 1 ? each + c : c;
      count[h] = there < 0 ? 0 : least(there, kUnit);
    }
  }
};

// A block for each step and tile of columns: the weights that it multiplies with, zero where they are dead.
// Columns are in such an order that a lane has the sums of neighbouring channels.
PIXELFAST_DEVICE void pack_block(const ConvArgs& a) {
  const int block = simt::block() / a.steps, nth_step = simt::block() % a.steps;
  const int whole = least(nth_step / a.n_taps, a.inputs / kStep);
  Step step(a, whole * kStep);
  for (int s = whole * a.n_taps; s < nth_step; ++s) step.next(a);
  uint16_t* const packed = static_cast<uint16_t*>(a.packed) + simt::block() * int64_t{kTensorColumns * kStep};
  for (int e = simt::thread(); e < kTensorColumns * kStep; e += simt::threads()) {
    const int column = e / kStep, unit = step.unit + e % kStep / kUnit;
    const int half = column / (kTensorColumns / 2), among = column % 8 / 2;
    const int nth = column % (kTensorColumns / 2) / 8 * 2 + column % 2;
    const Channels channels(a, block, among);
    const int input = step.channel + unit % step.units * kUnit + e % kUnit, tap = unit / step.units;
    uint16_t found = 0;
    if (nth < channels.count[half] && input < a.inputs && tap < step.taps) {
      const int channel = channels.first[half] + nth, t = step.tap + tap;
      if (is_live(a, channel, input, t)) {
        found = static_cast<const uint16_t*>(a.weight)[weight_place(a, channel, input, t)];
      }
    }
    packed[e] = found;
  }
}

// What a thread brings to the strips: one unit of every 32nd line.
template <bool kAtOnce>
struct StripCopies {
  static constexpr int kApart = kTensorThreads / kUnitsOfStep;
  static constexpr int kLines = (kStripLines + kApart - 1) / kApart;
  Line lines[kLines];

  PIXELFAST_DEVICE StripCopies(const ConvArgs& a, int64_t first) {
    Walk walk(a, a.in_strides, first + a.left + line_of_thread<kAtOnce>());
    PIXELFAST_UNROLL()
    for (int i = 0; i < kLines; ++i) {
      lines[i] = Line(a, walk);
      walk.advance(a, a.in_strides, kApart);
    }
  }

  PIXELFAST_DEVICE void start(const ConvArgs& a, Tiles& memory, int stage, const Step& step) const {
    const int unit = unit_of_thread<kAtOnce>(), channel = step.channel + unit * kUnit;
    const int line = line_of_thread<kAtOnce>(), dy = a.tap_y[step.tap];
    const int64_t apart = kAtOnce ? 1 : a.in_strides.c, shift = dy * a.in_strides.y + channel * apart;
    const int word = stage * kStripWords + word_of<kUnitsOfStep>(line, unit);
    PIXELFAST_UNROLL()
    for (int i = 0; i < kLines; ++i) {
      if (unit < step.units && line + i * kApart < kTensorRows + a.span) {
        bring<kAtOnce>(memory, word + i * kApart / 16 * kSixteenLines<kUnitsOfStep>, a.in,
                       lines[i].place + shift, apart, lines[i].is_inside(a, dy) ? a.inputs - channel : 0);
      }
    }
  }
};

// `from`: of the thread.
PIXELFAST_DEVICE inline void start_weights(Tiles& memory, const uint16_t* from, int stage) {
  const int line = simt::thread() / kUnitsOfStep, apart = kTensorThreads / kUnitsOfStep;
  const int word = word_of<kUnitsOfStep>(line, simt::thread() % kUnitsOfStep);
  for (int i = 0; i < kTensorColumns / apart; ++i) {
    simt::copy_async<4>(memory,
                        kWeights + stage * kWeightWords + word + i * apart / 16 * kSixteenLines<kUnitsOfStep>,
                        from + i * kTensorThreads * kUnit, true);
  }
}

// Adds the products of a step. `x`: of the lane's rows, 16 apart.
template <simt::Half kHalf>
PIXELFAST_DEVICE inline void multiply_step(const ConvArgs& a, const Tiles& memory, const Step& step,
                                           int strip, int weights, const int (&x)[4], Sums& sums) {
  constexpr int kApart = kSixteenLines<kUnitsOfStep>;
  const int lane = simt::lane(), line = simt::thread() / simt::kWarp * kWarpRows + lane % 16 - a.left;
  const int tile = kWeights + weights * kWeightWords;
  for (int term = 0; term < kStep; term += 16) {
    const int nth = step.unit + term / kUnit + lane / 16;
    const int tap = nth * step.inverse >> 16, unit = nth - tap * step.units;
    const int dx = tap < step.taps ? a.tap_x[step.tap + tap] : kMostSide + 1;
    const int row = strip * kStripWords + word_of<kUnitsOfStep>(line + dx, unit);
    const int column = tile + word_of<kUnitsOfStep>(lane % 8 + lane / 16 * 8, term / kUnit + lane / 8 % 2);
    Fragments f;
    for (int i = 0; i < 4; ++i) {
      const bool inside = static_cast<uint32_t>(x[i] + dx) < static_cast<uint32_t>(a.in_width);
      simt::load_matrices(memory, inside ? row + i * kApart : zeros_for(kZeros, row), f.rows[i]);
    }
    for (int j = 0; j < 4; ++j) {
      uint32_t found[4];
      simt::load_matrices(memory, column + j * kApart, found);
      f.set_columns(j, found);
    }
    f.multiply<kHalf>(sums);
  }
}

PIXELFAST_DEVICE inline float fast_sigmoid(float x) {
  return simt::fast_reciprocal(1.0f + simt::fast_exp2(x * -1.44269504f));
}
PIXELFAST_DEVICE inline float fast_tanh(float x) {
  const float far = 1.0f - 2.0f * simt::fast_reciprocal(1.0f + simt::fast_exp2(x * 2.88539008f));
  return x > -0.06f && x < 0.06f ? x - x * x * x * 0.333333333f : far;  // where the other one cancels
}

// Bias, condition, gate and residual of the sums of one position.
template <simt::Half kHalf>
PIXELFAST_DEVICE inline void finish_position(const ConvArgs& a, const Position& at, const Channels& channels,
                                             float (&y)[2][kUnit]) {
  using Numbers = Eight<kHalf>;
  PIXELFAST_UNROLL()
  for (int h = 0; h < 2; ++h) {
    const int c = channels.first[h], n = channels.count[h];
    if (a.bias != nullptr) Numbers::add(a.bias, c, 1, n, y[h]);
    if (a.condition != nullptr) {
      Numbers::add(a.condition, place_of(a.condition_strides, at, c), a.condition_strides.c, n, y[h]);
    }
    if (!a.gate) continue;
    for (int e = 0; e < kUnit; ++e) y[h][e] = h == 0 ? fast_tanh(y[h][e]) : fast_sigmoid(y[h][e]);
    Numbers::store(a.factors, place_of(a.factor_strides, at, c), a.factor_strides.c, n, y[h]);
  }
  PIXELFAST_UNROLL()
  for (int h = 0; h < 2; ++h) {
    const int c = channels.first[h], n = channels.count[h];
    if (a.gate && h == 1) break;
    for (int e = 0; e < kUnit; ++e) y[h][e] *= a.gate ? y[1][e] : 1.0f;
    if (a.residual != nullptr) {
      Numbers::add(a.residual, place_of(a.residual_strides, at, c), a.residual_strides.c, n, y[h]);
    }
    Numbers::store(a.out, place_of(a.out_strides, at, c), a.out_strides.c, n, y[h]);
  }
}

template <simt::Half kHalf>
PIXELFAST_DEVICE inline void finish_tile(const ConvArgs& a, int64_t first, int block, Sums& sums) {
  const int lane = simt::lane();
  const Channels channels(a, block, lane);
  const int row = simt::thread() / simt::kWarp * kWarpRows + lane / 4;
  Position at = position_of(first + row, a.height, a.columns);
  // What is next comes to the front, so that all is indexed by constants and the code is there once.
  PIXELFAST_UNROLL(1)
  for (int i = 0; i < 2 * 4; ++i) {
    const bool lower = i % 2 == 1;
    float y[2][kUnit];
    PIXELFAST_UNROLL()
    for (int e = 0; e < 2 * kUnit; ++e) {
      const auto& pairs = sums[0][e / 2];
      y[e / kUnit][e % kUnit] = lower ? pairs[2 + e % 2] : pairs[e % 2];
    }
    if (at.n < a.batch && at.x < a.width) finish_position<kHalf>(a, at, channels, y);
    at.advance(8, a.height, a.columns);
    PIXELFAST_UNROLL()
    for (int k = 0; k < 3 * 8 * 4; ++k) {
      if (lower) sums[k / 32][k / 4 % 8][k % 4] = sums[k / 32 + 1][k / 4 % 8][k % 4];
    }
  }
}

// `kAtOnce`: whether units of the input are read at once.
template <simt::Half kHalf, bool kAtOnce>
PIXELFAST_DEVICE void tensor_conv_block(const ConvArgs& a) {
  Tiles& memory = simt::dynamic_memory();
  const int wide = a.gate ? kTensorColumns / 2 : kTensorColumns;
  const int column_blocks = ((a.gate ? a.outputs / 2 : a.outputs) + wide - 1) / wide;
  const int block = simt::block() % column_blocks, thread = simt::thread();
  const int64_t first = static_cast<int64_t>(simt::block() / column_blocks) * kTensorRows;
  int x[4];
  Position at =
      position_of(first + thread / simt::kWarp * kWarpRows + simt::lane() % 16, a.height, a.columns);
  for (int i = 0; i < 4; ++i) x[i] = at.x, at.advance(16, a.height, a.columns);
  const StripCopies<kAtOnce> copies(a, first);
  const uint16_t* from = static_cast<const uint16_t*>(a.packed) +
                         static_cast<int64_t>(block) * a.steps * kTensorColumns * kStep + thread * kUnit;
  Sums sums = {};
  if (thread < kZeroWords) memory.set(kZeros + thread, 0);

  // Copies are started two steps ahead: of weights in each step, of strips where a row of the kernel begins.
  Step now(a, 0), ahead(a, 0);
  const auto start = [&](int stage, bool with_weights, int strip, bool with_strip) {
    if (with_strip && ahead.channel < a.inputs) copies.start(a, memory, strip, ahead), ahead.next_row(a);
    if (with_weights) start_weights(memory, from, stage), from += kTensorColumns * kStep;
    simt::group_copies();
  };
  PIXELFAST_UNROLL(1)
  for (int s = 0; s < kStages - 1; ++s) start(s, s < a.steps, s, a.steps > 0);
  int stage = 0, strip = 0, free_strip = kStages - 1;
  bool begins = true;
  PIXELFAST_UNROLL(1)
  for (int s = 0; s < a.steps; ++s) {
    simt::wait_for_copies<kStages - 2>();
    simt::sync_block();
    start(stage_before(stage), s + kStages - 1 < a.steps, free_strip, begins);
    multiply_step<kHalf>(a, memory, now, strip, stage, x, sums);
    stage = stage_after(stage);
    begins = now.next(a);
    if (begins) free_strip = strip, strip = stage_after(strip);
  }
  finish_tile<kHalf>(a, first, block, sums);
}

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
