#include "cpu/team.h"

#ifdef __linux__
#include <sched.h>
#endif

#include <thread>
#ifdef PIXELFAST_X86
#include <immintrin.h>
#endif

namespace pixelfast {
namespace {

constexpr int kSpins = 1000;

void pause() {
#ifdef PIXELFAST_X86
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// From 1 on; 0 where the system does not tell.
int processor() {
#ifdef __linux__
  return sched_getcpu() + 1;
#else
  return 0;
#endif
}

}  // namespace

bool Team::is_crowded(int rank) const {
  const int here = processors_[rank].load(std::memory_order_relaxed);
  for (int other = 0; other < size_ && here > 0; ++other) {
    if (other != rank && processors_[other].load(std::memory_order_relaxed) == here) return true;
  }
  return false;
}

bool Team::wait(int rank, bool stop) {
  if (size_ == 1) return stop;
  const int here = processor();
  if (processors_[rank].load(std::memory_order_relaxed) !=
      here) {  // seldom, so that all may keep the cache line
    processors_[rank].store(here, std::memory_order_relaxed);
  }
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (stop) stop_.store(true, std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    stopped_ = stop_.load(std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
  } else {
    for (int spins = is_crowded(rank) ? kSpins : 0; phase_.load(std::memory_order_acquire) == phase;
         ++spins) {
      if (spins < kSpins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }
  return stopped_;
}

}  // namespace pixelfast
