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

// Sums of up to 64 vectors of numbers in [0, 2^31], in halves that do not overflow.
template <class V>
struct IntegerSum {
  using I = typename V::Int;
  I low = I::set(0), high = I::set(0);
  void add(I x) {
    low = low + (x & I::set(0xFFFF));
    high = high + x.template srl<16>();
  }
  int64_t total() const { return (static_cast<int64_t>(high.sum()) << 16) + static_cast<int64_t>(low.sum()); }
};

// The logits from level k on; -inf beyond the last of n.
template <class V>
static inline V logits_at(const float* logits, int k, int n) {
  if (n - k >= V::kLanes) return V::load(logits + k);
  return V::load(logits + k, n - k, V::set(-__builtin_inff()));
}

// The largest logit and whether any is NaN.
template <class V>
static inline float largest_logit(const float* logits, int n, bool* nan) {
  V largest = V::set(-__builtin_inff());
  V good = V::set(1.0f);
  const V zero = V::set(0.0f);
  for (int k = 0; k < n; k += V::kLanes) {
    const V x = logits_at<V>(logits, k, n);
    good = V::select(V::eq(x, x), good, zero);
    largest = V::max(x, largest);
  }
  *nan = V::first(V::eq(good, zero)) < V::kLanes;
  return V::largest(largest);
}

// What the loop over the logits finds besides the weights.
struct WeightTotals {
  int64_t total;  // of the weights of allowed levels
  int32_t allowed, argmax;
};

// weight[k] = w_k, and -1 where logit_k is -inf and up to the next multiple of the lanes. `largest` must be
// finite and no logit NaN.
template <class V>
static inline WeightTotals level_weights(const float* logits, int n, float largest, float inverse_temperature,
                                         int32_t* weight) {
  using I = typename V::Int;
  WeightTotals found = {0, 0, -1};
  for (int start = 0; start < n; start += 64 * V::kLanes) {
    const int end = n - start < 64 * V::kLanes ? n : start + 64 * V::kLanes;
    IntegerSum<V> sum;
    I allowed = I::set(0);
    for (int k = start; k < end; k += V::kLanes) {
      const V x = logits_at<V>(logits, k, n);
      const V scaled = vexp((x - V::set(largest)) * V::set(inverse_temperature)) * V::set(0x1p30f);
      const auto excluded = V::eq(x, V::set(-__builtin_inff()));
      const I w = I::truncate(V::select(excluded, V::set(-1.0f), scaled));
      w.store(weight + k);
      const I one = w.template srl<31>();  // of excluded levels
      sum.add(w + one);
      allowed = allowed + one;
      if (found.argmax < 0) {
        const int first = V::first(V::eq(x, V::set(largest)));
        if (first < V::kLanes) found.argmax = k + first;
      }
    }
    const int vectors = (end - start + V::kLanes - 1) / V::kLanes;
    found.total += sum.total();
    found.allowed += vectors * V::kLanes - static_cast<int32_t>(allowed.sum());
  }
  return found;
}

// Fills frequency[k] and block_sums[k / kFrequencyBlock] without the remainder; returns their sum. Weights
// are as level_weights leaves them; frequencies have as much room.
template <class V>
static inline int64_t level_frequencies(const int32_t* weight, int n, double scale, int32_t* frequency,
                                        int64_t* block_sums) {
  using I = typename V::Int;
  int64_t total = 0;
  for (int start = 0; start < n; start += kFrequencyBlock) {
    const int end = n - start < kFrequencyBlock ? n : start + kFrequencyBlock;
    IntegerSum<V> sum;
    for (int k = start; k < end; k += V::kLanes) {
      const I w = I::load(weight + k);
      const I excluded = w.template sra<31>();  // all bits
      const I f = (w.scaled(scale) + I::set(1)).without(excluded);
      f.store(frequency + k);
      sum.add(f);
    }
    block_sums[start / kFrequencyBlock] = sum.total();
    total += block_sums[start / kFrequencyBlock];
  }
  return total;
}

// ---- rows as lanes ---------------------------------------------------------------------------------------
// The same for as many distributions as there are lanes, a row of logits each: nothing is summed over lanes.
// Tables are [n][lanes]: logits, then weights in their place, then frequencies.

// Lays the rows of logits side by side, and finds the largest of each. Returns whether all rows give a
// distribution.
template <class V>
static inline bool fill_logits(const float* const* logits, int n, int32_t* table, V* largest) {
  constexpr int kLanes = V::kLanes;
  const V zero = V::set(0.0f), infinity = V::set(__builtin_inff());
  V good = V::set(1.0f);
  *largest = vneg(infinity);
  const auto see = [&](int k, V x) {
    V::bits(x).store(table + k * kLanes);
    good = V::select(V::eq(x, x), good, zero);
    *largest = V::max(x, *largest);
  };
  int k = 0;
  for (; k + 4 <= n; k += 4) {
    V x[4];
    V::transpose(logits, k, x);
    for (int i = 0; i < 4; ++i) see(k + i, x[i]);
  }
  for (; k < n; ++k) {
    float column[kLanes];
    for (int i = 0; i < kLanes; ++i) column[i] = logits[i][k];
    see(k, V::load(column));
  }
  good = V::select(V::lt(vabs(*largest), infinity), good, zero);
  return V::first(V::eq(good, zero)) == kLanes;
}

// Turns the logits of a table into weights. Finds each row's scale of them, and the first of its largest
// logits.
template <class V>
static inline void fill_weights(int n, V largest, float inverse_temperature, int32_t* table, double* scale,
                                int32_t* argmax) {
  using I = typename V::Int;
  constexpr int kLanes = V::kLanes;
  IntegerSum<V> sum;
  I excluded = I::set(0);
  V first = V::set(0.0f);
  for (int k = n; k-- > 0;) {
    const V x = V::floats(I::load(table + k * kLanes));
    const V scaled = vexp((x - largest) * V::set(inverse_temperature)) * V::set(0x1p30f);
    const I w = I::truncate(V::select(V::eq(x, V::set(-__builtin_inff())), V::set(-1.0f), scaled));
    w.store(table + k * kLanes);
    const I one = w.template srl<31>();  // of excluded levels
    sum.add(w + one);
    excluded = excluded + one;
    first = V::select(V::eq(x, largest), V::set(static_cast<float>(k)), first);
  }
  int32_t low[kLanes], high[kLanes], out[kLanes];
  sum.low.store(low), sum.high.store(high), excluded.store(out), I::truncate(first).store(argmax);
  for (int i = 0; i < kLanes; ++i) {
    const int64_t total = (static_cast<int64_t>(high[i]) << 16) + static_cast<uint32_t>(low[i]);
    scale[i] = static_cast<double>(kFrequencyTotal - (n - out[i])) / static_cast<double>(total);
  }
}

// Turns the weights of a table into frequencies.
template <class V>
static inline void fill_frequencies(int n, const double* scale, const int32_t* argmax, int32_t* table) {
  using I = typename V::Int;
  constexpr int kLanes = V::kLanes;
  I used = I::set(0);
  for (int k = 0; k < n; ++k) {
    const I w = I::load(table + k * kLanes);
    const I f = (w.scaled(scale) + I::set(1)).without(w.template sra<31>());
    f.store(table + k * kLanes);
    used = used + f;
  }
  int32_t sums[kLanes];
  used.store(sums);
  for (int i = 0; i < kLanes; ++i) {
    int32_t* f = table + argmax[i] * kLanes + i;
    *f = static_cast<int32_t>(static_cast<uint32_t>(*f) + 0x80000000u - static_cast<uint32_t>(sums[i]));
  }
}

// On entry level[lane] is a level, or -1 for one to be drawn by bits[lane]; then it is the level, and
// frequency[lane] that level's. Returns false, and leaves them as they are, unless all rows give a
// distribution.
template <class V>
static inline bool draw_levels(const float* const* logits, int n, float inverse_temperature,
                               const uint32_t* bits, int32_t* table, int32_t* level, uint32_t* frequency) {
  using I = typename V::Int;
  constexpr int kLanes = V::kLanes;
  V largest;
  double scale[kLanes];
  int32_t argmax[kLanes], below[kLanes], bounds[kLanes];
  if (!fill_logits(logits, n, table, &largest)) return false;
  fill_weights(n, largest, inverse_temperature, table, scale, argmax);
  fill_frequencies<V>(n, scale, argmax, table);
  // A level is drawn if the frequencies of those before it, but not its own, fit into the bits.
  for (int i = 0; i < kLanes; ++i) bounds[i] = static_cast<int32_t>(bits[i]);
  I left = I::load(bounds), over = I::set(0);
  for (int k = 0; k < n; ++k) {
    left = left - I::load(table + k * kLanes);
    over = over + left.template srl<31>();
  }
  over.store(below);
  for (int i = 0; i < kLanes; ++i) {
    if (level[i] < 0) level[i] = n - below[i];
    frequency[i] = static_cast<uint32_t>(table[level[i] * kLanes + i]);
  }
  return true;
}

}  // namespace pixelfast
