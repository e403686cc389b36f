// Tiles of halves in shared memory, and their products on tensor cores.
//
// A tile has lines of units, and a unit is 16 bytes: eight halves. What lies in a line is next to each other
// in memory of the device, too. A block has four warps, each with 64 rows and all columns of the sums.
#pragma once

#include "cuda/conv_places.h"

namespace pixelfast {
namespace cuda {
namespace {

constexpr int kWarpRows = kTensorRows / (kTensorThreads / simt::kWarp);

PIXELFAST_DEVICE inline int stage_before(int stage) { return stage == 0 ? kStages - 1 : stage - 1; }
PIXELFAST_DEVICE inline int stage_after(int stage) { return stage == kStages - 1 ? 0 : stage + 1; }

using Tiles = simt::Shared<uint32_t, simt::kMostWords>;  // what a launch gives a block

// The zeros that stand for a line outside of the grid: in the banks of that line.
PIXELFAST_DEVICE inline int zeros_for(int zeros, int word) {
  return zeros + static_cast<int>(static_cast<uint32_t>(word) % kZeroWords);
}

// Where a unit of a line is. Those of a line change places, so that eight lanes that read the same unit of
// eight neighbouring lines find them in different banks. Lines 16 apart are alike.
template <int kUnits>
PIXELFAST_DEVICE inline int word_of(int line, int unit) {
  const auto turn = static_cast<int>(kUnits < 8 ? uint32_t(line) * kUnits / 8 % kUnits : uint32_t(line) % 8);
  return 4 * (line * kUnits + (unit ^ turn));
}
template <int kUnits>
constexpr int kSixteenLines = 16 * kUnits * 4;  // words

// Which unit of 32 lines of four a thread brings. Neighbouring threads have neighbouring units of a line,
// where these are next to each other in memory of the device, and neighbouring lines, where those may be.
template <bool kAtOnce>
PIXELFAST_DEVICE inline int line_of_thread() {
  return kAtOnce ? simt::thread() / kUnitsOfStep : simt::thread() % simt::kWarp;
}
template <bool kAtOnce>
PIXELFAST_DEVICE inline int unit_of_thread() {
  return kAtOnce ? simt::thread() % kUnitsOfStep : simt::thread() / simt::kWarp;
}
static_assert(kTensorThreads == kUnitsOfStep * simt::kWarp, "a thread has a unit");

// Brings up to eight channels of a position to a unit, at once where they lie so; zeros for those that there
// are not.
template <bool kAtOnce>
PIXELFAST_DEVICE inline void bring(Tiles& memory, int word, const void* from, int64_t at, int64_t stride,
                                   int channels) {
  const uint16_t* const source = static_cast<const uint16_t*>(from) + at;
  if constexpr (kAtOnce) {
    simt::copy_async<4>(memory, word, source, channels > 0);
  } else {
    uint32_t found[4];
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = 2 * i < channels ? source[2 * i * stride] : 0;
      const uint32_t high = 2 * i + 1 < channels ? source[(2 * i + 1) * stride] : 0;
      found[i] = low | high << 16;
    }
    simt::set_four(memory, word, found);
  }
}

// Sums of a warp, as multiply_halves has them: 16 rows for each of the first index, 8 columns for each of the
// second.
using Sums = float[4][8][4];

// Fragments of 16 terms: of 64 rows, and of all columns.
struct Fragments {
  uint32_t rows[4][4], columns[8][2];

  PIXELFAST_DEVICE void set_columns(int pair, const uint32_t (&found)[4]) {
    columns[2 * pair][0] = found[0], columns[2 * pair][1] = found[1];
    columns[2 * pair + 1][0] = found[2], columns[2 * pair + 1][1] = found[3];
  }

  template <simt::Half kHalf>
  PIXELFAST_DEVICE void multiply(Sums& sums) const {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 8; ++j) simt::multiply_halves<kHalf>(rows[i], columns[j], sums[i][j]);
    }
  }
};

// Eight neighbouring channels in memory of the device, of which `n` are there.
template <simt::Half kHalf>
struct alignas(16) Eight {
  uint16_t halves[kUnit];

  static PIXELFAST_DEVICE bool at_once(const void* p, int64_t stride, int n) {
    return stride == 1 && n == kUnit && reinterpret_cast<uintptr_t>(p) % sizeof(Eight) == 0;
  }

  static PIXELFAST_DEVICE void add(const void* from, int64_t at, int64_t stride, int n, float (&y)[kUnit]) {
    const uint16_t* const p = static_cast<const uint16_t*>(from) + at;
    Eight found = {};
    if (at_once(p, stride, n)) {
      found = *reinterpret_cast<const Eight*>(p);
    } else {
      for (int e = 0; e < kUnit; ++e) {
        if (e < n) found.halves[e] = p[e * stride];
      }
    }
    for (int e = 0; e < kUnit; ++e) y[e] += simt::widen<kHalf>(found.halves[e]);
  }

  static PIXELFAST_DEVICE void store(void* to, int64_t at, int64_t stride, int n, const float (&y)[kUnit]) {
    uint16_t* const p = static_cast<uint16_t*>(to) + at;
    Eight rounded;
    for (int e = 0; e < kUnit; ++e) rounded.halves[e] = simt::narrow<kHalf>(y[e]);
    if (at_once(p, stride, n)) {
      *reinterpret_cast<Eight*>(p) = rounded;
    } else {
      for (int e = 0; e < kUnit; ++e) {
        if (e < n) p[e * stride] = rounded.halves[e];
      }
    }
  }
};

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
