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

// The sum of up to 2^16 numbers in [0, 2^31], from that of their upper halves and from itself modulo 2^32.
static inline int64_t sum_of(uint32_t upper, uint32_t sum) {
  return (static_cast<int64_t>(upper) << 16) + (sum - (upper << 16));
}

template <class V>
struct IntegerSum {
  using I = typename V::Int;
  I sum = I::set(0), upper = I::set(0);
  void add(I x) {
    sum = sum + x;
    upper = upper + x.template srl<16>();
  }
  int64_t total() const { return sum_of(upper.sum(), sum.sum()); }
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
  IntegerSum<V> sum;
  I excluded_levels = I::set(0);
  int k = 0;
  for (; k < n; k += V::kLanes) {
    const V x = logits_at<V>(logits, k, n);
    const V scaled =
        vexp_within(from_below((x - V::set(largest)) * V::set(inverse_temperature))) * V::set(0x1p30f);
    const auto excluded = V::eq(x, V::set(-__builtin_inff()));
    const I w = I::truncate(V::select(excluded, V::set(-1.0f), scaled));
    w.store(weight + k);
    const I one = w.template srl<31>();  // of excluded levels
    sum.add(w + one);
    excluded_levels = excluded_levels + one;
    if (found.argmax < 0) {
      const int first = V::first(V::eq(x, V::set(largest)));
      if (first < V::kLanes) found.argmax = k + first;
    }
  }
  found.total = sum.total();
  found.allowed = k - static_cast<int32_t>(excluded_levels.sum());
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
    I sum = I::set(0);
    for (int k = start; k < end; k += V::kLanes) {
      const I w = I::load(weight + k);
      const I excluded = w.template sra<31>();  // all bits
      const I f = (w.scaled(scale) + I::set(1)).without(excluded);
      f.store(frequency + k);
      sum = sum + f;
    }
    block_sums[start / kFrequencyBlock] = sum.sum();
    total += block_sums[start / kFrequencyBlock];
  }
  return total;
}

// ---- rows as lanes ---------------------------------------------------------------------------------------
// The same for as many distributions as there are lanes, a row of logits each: nothing is summed over lanes.
// Tables are [n][lanes]: logits, then weights in their place, then sums of frequencies.

template <class V>
static inline bool all_finite(V x) {
  const V one = V::set(1.0f);
  const V odd = V::select(V::lt(vabs(x), V::set(__builtin_inff())), V::set(0.0f), one);
  return V::first(V::eq(odd, one)) == V::kLanes;
}

// Lays the rows of logits side by side, and finds the largest of each but NaN, and their sum, which is finite
// only if all of them are.
template <class V>
static inline void fill_logits(const float* const* logits, int n, int32_t* table, V* largest, V* sum) {
  constexpr int kLanes = V::kLanes;
  *largest = V::set(-__builtin_inff());
  *sum = V::set(0.0f);
  const auto see = [&](int k, V x) {
    V::bits(x).store(table + k * kLanes);
    *largest = V::max(x, *largest);
    *sum = *sum + x;
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
}

template <class V>
static inline bool any_nan(int n, const int32_t* table) {
  V good = V::set(1.0f);
  for (int k = 0; k < n; ++k) {
    const V x = V::floats(V::Int::load(table + k * V::kLanes));
    good = V::select(V::eq(x, x), good, V::set(0.0f));
  }
  return V::first(V::eq(good, V::set(0.0f))) < V::kLanes;
}

// Turns the logits of a table into weights. Finds each row's scale of them, and the first of its largest
// logits. kExcluding: some levels may be excluded.
template <class V, bool kExcluding>
static inline void fill_weights(int n, V largest, float inverse_temperature, int32_t* table, double* scale,
                                int32_t* argmax) {
  using I = typename V::Int;
  constexpr int kLanes = V::kLanes;
  IntegerSum<V> total;
  I excluded = I::set(0);
  V first = V::set(0.0f);
  for (int k = n; k-- > 0;) {
    const V x = V::floats(I::load(table + k * kLanes));
    V scaled = vexp_within(from_below((x - largest) * V::set(inverse_temperature))) * V::set(0x1p30f);
    if (kExcluding) scaled = V::select(V::eq(x, V::set(-__builtin_inff())), V::set(-1.0f), scaled);
    const I w = I::truncate(scaled);
    w.store(table + k * kLanes);
    const I one = kExcluding ? w.template srl<31>() : I::set(0);  // of excluded levels
    total.add(w + one);
    excluded = excluded + one;
    first = V::select(V::eq(x, largest), V::set(static_cast<float>(k)), first);
  }
  int32_t sum[kLanes], upper[kLanes], out[kLanes];
  total.sum.store(sum), total.upper.store(upper), excluded.store(out), I::truncate(first).store(argmax);
  for (int i = 0; i < kLanes; ++i) {
    const int64_t whole = sum_of(static_cast<uint32_t>(upper[i]), static_cast<uint32_t>(sum[i]));
    scale[i] = static_cast<double>(kFrequencyTotal - (n - out[i])) / static_cast<double>(whole);
  }
}

// Turns the weights of a table into the sums of the frequencies up to each level, without what rounding
// leaves.
template <class V, bool kExcluding>
static inline void fill_sums(int n, const double* scale, int32_t* table) {
  using I = typename V::Int;
  I sum = I::set(0);
  for (int k = 0; k < n; ++k) {
    int32_t* const w = table + k * V::kLanes;
    I f = I::scaled(w, scale) + I::set(1);
    if (kExcluding) f = f.without(I::load(w).template sra<31>());
    sum = sum + f;
    sum.store(w);
  }
}

// On entry level[lane] is a level, or -1 for one to be drawn by bits[lane]; then it is the level, and
// frequency[lane] that level's. Returns false, and leaves them as they are, unless all rows give a
// distribution.
template <class V>
static inline bool draw_levels(const float* const* logits, int n, float inverse_temperature,
                               const uint32_t* bits, int32_t* table, int32_t* level, uint32_t* frequency) {
  constexpr int kLanes = V::kLanes;
  V largest, sum;
  double scale[kLanes];
  int32_t argmax[kLanes];
  fill_logits(logits, n, table, &largest, &sum);
  if (all_finite(sum)) {
    fill_weights<V, false>(n, largest, inverse_temperature, table, scale, argmax);
    fill_sums<V, false>(n, scale, table);
  } else {
    if (!all_finite(largest) || any_nan<V>(n, table)) return false;
    fill_weights<V, true>(n, largest, inverse_temperature, table, scale, argmax);
    fill_sums<V, true>(n, scale, table);
  }
  uint32_t rest[kLanes];
  for (int i = 0; i < kLanes; ++i) rest[i] = 0x80000000u - static_cast<uint32_t>(table[(n - 1) * kLanes + i]);
  const auto up_to = [&](int k, int i) {
    return static_cast<uint32_t>(table[k * kLanes + i]) + (k < argmax[i] ? 0 : rest[i]);
  };
  // The first level at which the sum is more than the bits, by halves: lane by lane, without a branch.
  int32_t drawn[kLanes] = {};
  for (int size = n; size > 1; size -= size / 2) {
    for (int i = 0; i < kLanes; ++i) {
      drawn[i] += up_to(drawn[i] + size / 2 - 1, i) <= bits[i] ? size / 2 : 0;
    }
  }
  for (int i = 0; i < kLanes; ++i) {
    if (level[i] < 0) level[i] = drawn[i];
    frequency[i] = up_to(level[i], i) - (level[i] > 0 ? up_to(level[i] - 1, i) : 0);
  }
  return true;
}

}  // namespace pixelfast
