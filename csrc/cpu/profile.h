// Where the time of a run goes, op by op.
#pragma once

#include <cstdint>
#include <vector>

#ifdef PIXELFAST_X86
#include <x86intrin.h>
#else
#include <chrono>
#endif

namespace pixelfast {

// Of one op; times in ticks, summed over threads.
struct OpProfile {
  int64_t calls = 0;  // blocks of rows
  int64_t rows = 0;
  int64_t multiply_adds = 0;
  int64_t weights_nbytes = 0;  // read
  uint64_t gather = 0, product = 0, total = 0;
};

struct Profile {
  std::vector<OpProfile> ops;
  uint64_t waiting = 0;  // for the other threads of a team
  uint64_t total = 0;    // of all threads, from start to end
  double seconds_per_tick = 0;
  double seconds = 0;  // by the clock on the wall
  int threads = 0;

  void add(const Profile& other) {
    for (size_t i = 0; i < ops.size(); ++i) {
      OpProfile& p = ops[i];
      const OpProfile& o = other.ops[i];
      p.calls += o.calls, p.rows += o.rows, p.multiply_adds += o.multiply_adds;
      p.weights_nbytes += o.weights_nbytes;
      p.gather += o.gather, p.product += o.product, p.total += o.total;
    }
    waiting += other.waiting, total += other.total;
  }
};

inline uint64_t ticks() {
#ifdef PIXELFAST_X86
  return __rdtsc();
#else
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
#endif
}

}  // namespace pixelfast
