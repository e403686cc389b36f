// A thin layer under the device code: indices, shared memory, barriers, warps, atomics. Under nvcc it is
// CUDA's own; under the host compiler an emulation on fibers, in which every thread of every block runs on
// the processor, and which checks what a GPU would not tell (emulator.h).
#pragma once

#include <cstdint>

#include "core/portable.h"

#ifdef __CUDACC__

#define PIXELFAST_DEVICE __device__

namespace pixelfast {
namespace simt {

constexpr int kWarp = 32;

PIXELFAST_DEVICE inline int thread() { return static_cast<int>(threadIdx.x); }
PIXELFAST_DEVICE inline int threads() { return static_cast<int>(blockDim.x); }
PIXELFAST_DEVICE inline int block() { return static_cast<int>(blockIdx.x); }
PIXELFAST_DEVICE inline int lane() { return thread() % kWarp; }
PIXELFAST_DEVICE inline void sync_block() { __syncthreads(); }
// For the blocks of a cluster, and what they wrote; only where kernels are launched in clusters.
PIXELFAST_DEVICE inline void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
  __trap();
#endif
}

template <class T>
PIXELFAST_DEVICE inline T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, x, mask);
}
template <class T>
PIXELFAST_DEVICE inline T shuffle_up(T x, int delta) {
  return __shfl_up_sync(0xFFFFFFFFu, x, delta);
}
template <class T>
PIXELFAST_DEVICE inline T shuffle(T x, int from) {
  return __shfl_sync(0xFFFFFFFFu, x, from);
}
PIXELFAST_DEVICE inline uint32_t ballot(bool x) { return __ballot_sync(0xFFFFFFFFu, x); }
PIXELFAST_DEVICE inline void sync_warp() { __syncwarp(); }
PIXELFAST_DEVICE inline int first_of(uint32_t votes) { return __ffs(static_cast<int>(votes)) - 1; }

// Among the threads of a grid, in memory of the device.
PIXELFAST_DEVICE inline int fetch_add(int* p, int x) { return atomicAdd(p, x); }
PIXELFAST_DEVICE inline unsigned long long fetch_min(unsigned long long* p, unsigned long long x) {
  return atomicMin(p, x);
}
PIXELFAST_DEVICE inline int load_acquire(const int* p) {
  int x = *static_cast<const volatile int*>(p);
  __threadfence();
  return x;
}
PIXELFAST_DEVICE inline void fence() { __threadfence(); }
PIXELFAST_DEVICE inline void fence_system() { __threadfence_system(); }
PIXELFAST_DEVICE inline void relax() {}

// Words of shared memory that a block has.
template <class T, int kSize>
struct Shared {
  T words[kSize];
  PIXELFAST_DEVICE T get(int i) const { return words[i]; }
  PIXELFAST_DEVICE void set(int i, T x) { words[i] = x; }
};

}  // namespace simt
}  // namespace pixelfast

#else

#include "cuda/emulator.h"

#define PIXELFAST_DEVICE

#endif
