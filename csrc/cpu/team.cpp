#include "cpu/team.h"

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

}  // namespace

bool Team::wait(bool stop) {
  if (size_ == 1) return stop;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (stop) stop_.store(true, std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    stopped_ = stop_.load(std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
  } else {
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
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
