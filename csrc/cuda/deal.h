// Who does what. Part of walk.h.
#pragma once

#include <cstdint>

#include "cuda/simt.h"

namespace pixelfast {
namespace cuda {
namespace {

// Units of work are dealt to threads in turn, on from launch to launch until these wait for each other.
class Deal {
 public:
  // To `size` threads, of which this is number `rank`.
  PIXELFAST_DEVICE Deal(int rank, int size) : rank_(rank), size_(size), turn_(rank) {}

  PIXELFAST_DEVICE void restart() { turn_ = rank_; }

  // unit(k) for those of `units` that are this thread's, or its warp's: a unit takes kThreads, one or a warp.
  template <int kThreads, class Unit>
  PIXELFAST_DEVICE void each(int64_t units, Unit unit) {
    for (int64_t k = turn_ / kThreads; k < units; k += size_ / kThreads) unit(k);
    const int64_t threads = units * kThreads;
    // By whole warps, which stay together.
    const auto dealt = static_cast<int>((threads + simt::kWarp - 1) / simt::kWarp * simt::kWarp % size_);
    turn_ = turn_ >= dealt ? turn_ - dealt : turn_ - dealt + size_;
  }

 private:
  const int rank_, size_;
  int turn_;  // the first unit of a launch that is this thread's
};

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
