// From the logits of one pixel to a level, by a warp: lanes take levels in turn. The arithmetic is that of
// core/distributions.h; sums are of integers, so that their order does not matter. Part of walk.h.
#pragma once

#include "core/distributions.h"
#include "core/philox.h"
#include "core/request.h"
#include "cuda/flat.h"
#include "cuda/lane.h"
#include "cuda/simt.h"

namespace pixelfast {
namespace cuda {
namespace {

template <class T>
PIXELFAST_DEVICE T sum_of_warp(T x) {
  for (int mask = 16; mask > 0; mask /= 2) x += simt::shuffle_xor(x, mask);
  return x;
}

template <class T, class Better>
PIXELFAST_DEVICE T best_of_warp(T x, Better better) {
  for (int mask = 16; mask > 0; mask /= 2) {
    const T other = simt::shuffle_xor(x, mask);
    x = better(other, x) ? other : x;
  }
  return x;
}

// What a warp does with the levels of a walk's pixels. A table has room for three numbers a level.
class Levels {
 public:
  PIXELFAST_DEVICE explicit Levels(const Walk& walk) : w_(walk), p_(walk.program) {}

  // The largest logit; false, and a note of what is wrong, where there is no distribution.
  template <class Logit>
  PIXELFAST_DEVICE bool find_largest(Logit logit, int64_t sub_pixel, float* largest) const {
    float most = -__builtin_inff();
    bool nan = false;
    for (int k = simt::lane(); k < p_.levels; k += simt::kWarp) {
      const float x = logit(k);
      nan = nan || !(x == x);
      most = x > most ? x : most;
    }
    most = best_of_warp(most, [](float a, float b) { return a > b; });
    const bool any_nan = simt::ballot(nan) != 0;
    *largest = most;
    if (!any_nan && most - most == 0.0f) return true;
    const Flaw flaw = any_nan ? Flaw::nan : most > 0 ? Flaw::infinite : Flaw::impossible;
    if (simt::lane() == 0) {
      simt::fetch_min(w_.flaw, static_cast<unsigned long long>(sub_pixel) * 4 + static_cast<int>(flaw));
    }
    return false;
  }

  // Returns the first of the largest logits.
  template <class Logit>
  PIXELFAST_DEVICE int fill_weights(Logit logit, float largest, int32_t* table) const {
    int argmax = p_.levels;
    for (int k = simt::lane(); k < p_.levels; k += simt::kWarp) {
      const float x = logit(k);
      const Lanes scaled =
          vexp_within(from_below((Lanes{x} - Lanes{largest}) * Lanes{w_.inverse_temperature})) *
          Lanes{0x1p30f};
      table[k] = x == -__builtin_inff() ? -1 : static_cast<int32_t>(scaled.v);
      if (x == largest && k < argmax) argmax = k;
    }
    simt::sync_warp();
    return best_of_warp(argmax, [](int a, int b) { return a < b; });
  }

  PIXELFAST_DEVICE void fill_frequencies(int argmax, int32_t* table) const {
    long long total = 0;
    int allowed = 0;
    for (int k = simt::lane(); k < p_.levels; k += simt::kWarp) {
      if (table[k] >= 0) total += table[k], ++allowed;
    }
    total = sum_of_warp(total), allowed = sum_of_warp(allowed);
    const double scale = static_cast<double>(kFrequencyTotal - allowed) / static_cast<double>(total);
    uint32_t used = 0;
    for (int k = simt::lane(); k < p_.levels; k += simt::kWarp) {
      const int32_t weight = table[k];
      const uint32_t f = weight < 0 ? 0 : 1 + static_cast<uint32_t>(static_cast<double>(weight) * scale);
      table[k] = static_cast<int32_t>(f);
      used += f;
    }
    used = sum_of_warp(used);
    simt::sync_warp();
    if (simt::lane() == 0) {
      table[argmax] = static_cast<int32_t>(static_cast<uint32_t>(table[argmax]) + 0x80000000u - used);
    }
    simt::sync_warp();
  }

  // `image`: its index in the series; `sub_pixel`: the one that is drawn, of the image.
  PIXELFAST_DEVICE int draw(const int32_t* table, uint64_t image, uint64_t sub_pixel) const {
    const uint32_t u = draw_bits(w_.seed, image, sub_pixel);
    uint32_t before = 0;  // frequencies of the levels so far
    for (int k = 0;; k += simt::kWarp) {
      const int mine = k + simt::lane();
      uint32_t sum = mine < p_.levels ? static_cast<uint32_t>(table[mine]) : 0;
      for (int delta = 1; delta < simt::kWarp; delta *= 2) {
        const uint32_t lower = simt::shuffle_up(sum, delta);
        if (simt::lane() >= delta) sum += lower;
      }
      const uint32_t votes = simt::ballot(before + sum > u);
      if (votes != 0) return k + simt::first_of(votes);
      before += simt::shuffle(sum, simt::kWarp - 1);
    }
  }

  // Excludes what top_k and then top_p leave out: by rank, descending logits, the lower index first.
  template <class Logit>
  PIXELFAST_DEVICE void filter(Logit logit, int32_t* table) const {
    const int n = p_.levels;
    int32_t *rank = table + n, *stay = table + 2 * n;
    int allowed = 0;
    for (int k = simt::lane(); k < n; k += simt::kWarp) {
      rank[k] = -1;
      if (table[k] < 0) continue;
      ++allowed, rank[k] = 0;
      const float mine = logit(k);
      for (int j = 0; j < n; ++j) rank[k] += logit(j) > mine || (logit(j) == mine && j < k);
    }
    allowed = sum_of_warp(allowed);
    simt::sync_warp();
    const int keep = w_.top_k > 0 && w_.top_k < allowed ? w_.top_k : allowed;
    long long total = 0;
    for (int k = simt::lane(); k < n; k += simt::kWarp) {
      if (rank[k] >= 0 && rank[k] < keep) total += table[k];
    }
    total = sum_of_warp(total);
    const double enough = w_.top_p * static_cast<double>(total);
    for (int k = simt::lane(); k < n; k += simt::kWarp) {
      bool stays = rank[k] >= 0 && rank[k] < keep;  // told when all have looked
      if (stays && w_.top_p < 1.0 && rank[k] > 0) {
        long long before = 0;
        for (int j = 0; j < n; ++j) {
          if (rank[j] >= 0 && rank[j] < rank[k]) before += table[j];
        }
        stays = static_cast<double>(before) < enough;
      }
      stay[k] = stays;
    }
    simt::sync_warp();
    for (int k = simt::lane(); k < n; k += simt::kWarp) {
      if (!stay[k]) table[k] = -1;
    }
    simt::sync_warp();
  }

 private:
  const Walk& w_;
  const FlatProgram& p_;
};

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
