// Logits become integers here, and nowhere else. The frequencies of the levels sum to 2^31; the sampler, the
// engine's log_prob and an entropy coder all read them. pixelfast/numerics.py: frequencies() is the
// definition.
//
//   w_k = trunc(exp((logit_k - max) * inverse_temperature) * 2^30)      -1: level excluded
//   f_k = 1 + trunc(w_k * (2^31 - n) / W)                               n levels allowed, their w sum to W
//   and what rounding leaves goes to the first of the largest logits.
//
// W, n and sums of f are integers, so that no order of summation matters.
#pragma once

#include <cstdint>

#include "core/math.h"

namespace pixelfast {

constexpr int64_t kFrequencyTotal = int64_t{1} << 31;
constexpr int kFrequencyBlock = 64;  // levels whose frequencies are summed together, to speed the draw

// The largest logit and whether any is NaN. Loads of the tail repeat the first logit.
template <class V>
static inline float largest_logit(const float* logits, int n, bool* nan) {
  V largest = V::set(logits[0]);
  V good = V::set(1.0f);
  const V zero = V::set(0.0f);
  for (int k = 0; k < n; k += V::kLanes) {
    V x;
    if (n - k >= V::kLanes) {
      x = V::load(logits + k);
    } else {
      float tail[V::kLanes];
      for (int i = 0; i < V::kLanes; ++i) tail[i] = logits[k + i < n ? k + i : 0];
      x = V::load(tail);
    }
    good = V::select(V::eq(x, x), good, zero);
    largest = vmax(x, largest);
  }
  float lane[V::kLanes], lane_good[V::kLanes];
  largest.store(lane);
  good.store(lane_good);
  float result = lane[0];
  *nan = false;
  for (int i = 0; i < V::kLanes; ++i) {
    result = lane[i] > result ? lane[i] : result;
    *nan |= lane_good[i] == 0.0f;
  }
  return result;
}

// weight[k] = w_k, and -1 where logit_k is -inf. `largest` must be finite and no logit NaN.
template <class V>
static inline void level_weights(const float* logits, int n, float largest, float inverse_temperature,
                                 int32_t* weight) {
  constexpr int kPiece = 64;
  float e[kPiece];
  for (int start = 0; start < n; start += kPiece) {
    const int size = n - start < kPiece ? n - start : kPiece;
    for (int k = 0; k < size; k += V::kLanes) {
      const V x = V::load(logits + start + k, size - k < V::kLanes ? size - k : V::kLanes);
      const V scaled = vexp((x - V::set(largest)) * V::set(inverse_temperature)) * V::set(0x1p30f);
      const auto excluded = V::eq(x, V::set(-__builtin_inff()));
      V::select(excluded, V::set(-1.0f), scaled).store(e + k);
    }
    for (int k = 0; k < size; ++k) weight[start + k] = static_cast<int32_t>(e[k]);
  }
}

// Fills frequency[k] and block_sums[k / kFrequencyBlock] without the remainder; returns their sum.
static inline int64_t level_frequencies(const int32_t* weight, int n, double scale, uint32_t* frequency,
                                        int64_t* block_sums) {
  int64_t total = 0;
  for (int start = 0; start < n; start += kFrequencyBlock) {
    const int end = n - start < kFrequencyBlock ? n : start + kFrequencyBlock;
    uint64_t sum = 0;
    for (int k = start; k < end; ++k) {
      const uint32_t f =
          1u + static_cast<uint32_t>(static_cast<int32_t>(static_cast<double>(weight[k]) * scale));
      frequency[k] = weight[k] < 0 ? 0u : f;
      sum += frequency[k];
    }
    block_sums[start / kFrequencyBlock] = static_cast<int64_t>(sum);
    total += static_cast<int64_t>(sum);
  }
  return total;
}

}  // namespace pixelfast
