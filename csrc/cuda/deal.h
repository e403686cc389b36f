// Who does what. Part of walk.h.
#pragma once

#include <cstdint>

#include "cuda/simt.h"

namespace pixelfast {
namespace cuda {
namespace {

// Who shares the units of a launch: the threads of a team, or those of a block.
enum class Among { team, block };

// Units of work are dealt to threads in turn, on from launch to launch until these wait for each other.
class Deal {
 public:
  // Of a team of `blocks`, this is number `block`.
  PIXELFAST_DEVICE Deal(int block, int blocks)
      : rank_(block * simt::threads() + simt::thread()), size_(blocks * simt::threads()) {
    restart();
  }

  PIXELFAST_DEVICE void restart() { of_team_ = rank_, of_block_ = simt::thread(); }

  // unit(k) for those of `units` that are this thread's, or its warp's: a unit takes kThreads, one or a warp.
  template <int kThreads, class Unit>
  PIXELFAST_DEVICE void each(Among among, int64_t units, Unit unit) {
    const bool alone = among == Among::block;
    const int size = alone ? simt::threads() : size_, turn = alone ? of_block_ : of_team_;
    for (int64_t k = turn / kThreads; k < units; k += size / kThreads) unit(k);
    const int64_t threads = units * kThreads;
    // By whole warps, which stay together.
    const auto dealt = static_cast<int>((threads + simt::kWarp - 1) / simt::kWarp * simt::kWarp % size);
    const int after = turn >= dealt ? turn - dealt : turn - dealt + size;
    alone ? of_block_ = after : of_team_ = after;
  }

 private:
  const int rank_, size_;
  int of_team_, of_block_;  // the first unit of a launch that is this thread's
};

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
