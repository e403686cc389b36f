// From the logits of one pixel to a level: the parts of core/distributions.h that do not loop over lanes.
#pragma once

#include <cstdint>
#include <vector>

#include "core/request.h"
#include "cpu/kernels.h"

namespace pixelfast {

// The integer frequencies of one distribution after another.
class LevelTable {
 public:
  LevelTable(const Kernels& kernels, int levels);

  Flaw build(const float* logits, const Sampling& sampling);

  // As `build` and `draw` for each of up to kBlockRows rows: level[r] is a level, or -1 for one to be drawn,
  // and frequency[r] that level's. Where there is a flaw, `row` is where.
  Flaw draw_rows(const float* const* logits, int n, const Sampling& sampling, const uint32_t* u,
                 int32_t* level, uint32_t* frequency, int* row);

  int draw(uint32_t u) const;  // u < 2^31
  uint32_t frequency(int level) const { return static_cast<uint32_t>(frequency_[level]); }

 private:
  bool rows_as_lanes(int n) const;
  void filter(const float* logits, const Sampling& sampling, Weights& w);

  const Kernels& kernels_;
  int levels_;
  std::vector<float> logits_;
  std::vector<int32_t> weight_;
  std::vector<int32_t> order_;
  std::vector<int32_t> frequency_;  // the bits of uint32_t
  std::vector<int64_t> block_sums_;
  struct alignas(kLine * sizeof(int32_t)) Line {  // of the cache
    int32_t word[kLine];
  };
  std::vector<Line> table_;  // of draw_rows, where rows are lanes
};

}  // namespace pixelfast
