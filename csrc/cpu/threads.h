// A pool of threads of our own: torch brings its own OpenMP, and two of those fight.
#pragma once

#include <atomic>
#include <functional>

namespace pixelfast {

// PIXELFAST_THREADS where that is set, else as many processors as this process may use: by its affinity and
// by the quota of its cgroup. Throws std::invalid_argument where the variable is not a number from 1 to 1024.
int default_threads();

constexpr int kMaxThreads = 1024;

// Runs body(0) to body(n - 1), each on a thread of its own, and returns when all have. Meanwhile the caller
// calls tick() every 50 ms. If either throws, `stop` is set, and the first exception is thrown from here once
// every body has returned. Any number of callers may do this at a time; it is safe in a child after fork().
void run_threads(int n, const std::function<void(int)>& body, const std::function<void()>& tick,
                 std::atomic<bool>& stop);

// While it lives, denormals are honoured, and rounding is to the nearest even, whatever the host process set.
class FloatMode {
 public:
  FloatMode();
  ~FloatMode();
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
  unsigned saved_ = 0;
};

}  // namespace pixelfast
