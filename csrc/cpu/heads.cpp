#include "cpu/heads.h"

#include <algorithm>
#include <cmath>

#include "core/distributions.h"

namespace pixelfast {
namespace {

constexpr int kMostColumns = 1024;   // levels of which a table for each lane stays in the cache
constexpr double kLevelCost = 1.35;  // of a vector of levels, in vectors of rows
constexpr int kSums = 90;            // levels that take as long as sums over lanes and a draw

}  // namespace

LevelTable::LevelTable(const Kernels& kernels, int levels)
    : kernels_(kernels),
      levels_(levels),
      logits_(levels),
      block_sums_((levels + kFrequencyBlock - 1) / kFrequencyBlock) {
  weight_.resize(block_sums_.size() * kFrequencyBlock, -1);
  frequency_.resize(weight_.size());
  if (levels <= kMostColumns)
    table_.resize((static_cast<size_t>(levels) * kernels.lanes + kLine - 1) / kLine);
  order_.reserve(levels);  // so that runs do not allocate: a thread that threw would leave its team waiting
}

// Excludes what top_k and then top_p leave out. Levels rank by descending logit, the lower index first.
void LevelTable::filter(const float* logits, const Sampling& sampling, Weights& w) {
  order_.clear();
  for (int k = 0; k < levels_; ++k) {
    if (weight_[k] >= 0) order_.push_back(k);
  }
  std::sort(order_.begin(), order_.end(),
            [&](int32_t i, int32_t j) { return logits[i] > logits[j] || (logits[i] == logits[j] && i < j); });
  size_t keep = order_.size();
  if (sampling.top_k > 0) keep = std::min<size_t>(keep, sampling.top_k);
  int64_t total = 0;
  for (size_t i = 0; i < keep; ++i) total += weight_[order_[i]];
  if (sampling.top_p < 1.0) {
    const double enough = sampling.top_p * static_cast<double>(total);
    size_t i = 0;
    total = 0;
    do {
      total += weight_[order_[i++]];
    } while (i < keep && static_cast<double>(total) < enough);
    keep = i;
  }
  for (size_t i = keep; i < order_.size(); ++i) weight_[order_[i]] = -1;
  w.total = total;
  w.allowed = static_cast<int32_t>(keep);
}

Flaw LevelTable::build(const float* source, const Sampling& sampling) {
  // They are read more than once, and in a damaged program another thread may be writing to them.
  const float* logits = std::copy_n(source, levels_, logits_.data()) - levels_;
  Weights w = kernels_.weights(logits, levels_, sampling.inverse_temperature, weight_.data());
  if (w.nan) return Flaw::nan;
  if (std::isinf(w.largest)) return w.largest > 0 ? Flaw::infinite : Flaw::impossible;
  if (sampling.top_k > 0 || sampling.top_p < 1.0) filter(logits, sampling, w);
  const double scale = static_cast<double>(kFrequencyTotal - w.allowed) / static_cast<double>(w.total);
  const int64_t sum =
      kernels_.frequencies(weight_.data(), levels_, scale, frequency_.data(), block_sums_.data());
  frequency_[w.argmax] =
      static_cast<int32_t>(frequency(w.argmax) + static_cast<uint32_t>(kFrequencyTotal - sum));
  block_sums_[w.argmax / kFrequencyBlock] += kFrequencyTotal - sum;
  return Flaw::none;
}

// Lanes may be levels or rows. Rows need no sums over lanes, but leave lanes idle where there are few.
bool LevelTable::rows_as_lanes(int n) const {
  return n * (levels_ + kSums) * kLevelCost >= levels_ * kernels_.lanes;
}

Flaw LevelTable::draw_rows(const float* const* logits, int n, const Sampling& sampling, const uint32_t* u,
                           int32_t* level, uint32_t* frequency, int* row) {
  const bool all_levels = sampling.top_k == 0 && sampling.top_p >= 1.0;
  if (all_levels && !table_.empty() && rows_as_lanes(n)) {
    const LevelArgs args{logits, levels_,  sampling.inverse_temperature, u, table_.data()->word,
                         level,  frequency};
    if (kernels_.levels(args, n)) return Flaw::none;
  }
  for (*row = 0; *row < n; ++*row) {
    const int r = *row;
    const Flaw flaw = build(logits[r], sampling);
    if (flaw != Flaw::none) return flaw;
    if (level[r] < 0) level[r] = draw(u[r]);
    frequency[r] = this->frequency(level[r]);
  }
  return Flaw::none;
}

int LevelTable::draw(uint32_t u) const {
  int64_t left = u;  // the frequencies sum to more than u, so both loops end in time
  size_t block = 0;
  while (left >= block_sums_[block]) left -= block_sums_[block++];
  int level = static_cast<int>(block) * kFrequencyBlock;
  while (left >= frequency(level)) left -= frequency(level++);
  return level;
}

}  // namespace pixelfast
