// A thin layer under the device code: indices, shared memory, barriers, warps, atomics. Under nvcc it is
// CUDA's own; under the host compiler an emulation on fibers, in which every thread of every block runs on
// the processor, and which checks what a GPU would not tell (emulator.h).
#pragma once

#include <cstdint>

#include "core/fp16.h"

namespace pixelfast {
namespace simt {
enum class Half { bfloat16, float16 };  // numbers of 16 bits, two of them in a word
}  // namespace simt
}  // namespace pixelfast

#ifdef __CUDACC__

#define PIXELFAST_DEVICE __device__
#define PIXELFAST_INLINE __forceinline__  // so that what a thread keeps stays in registers
#define PIXELFAST_PRAGMA(text) _Pragma(#text)
#define PIXELFAST_UNROLL(n) PIXELFAST_PRAGMA(unroll n)  // unroll 1: the body is there once

namespace pixelfast {
namespace simt {

constexpr int kWarp = 32;

PIXELFAST_DEVICE inline int thread() { return static_cast<int>(threadIdx.x); }
PIXELFAST_DEVICE inline int threads() { return static_cast<int>(blockDim.x); }
PIXELFAST_DEVICE inline int block() { return static_cast<int>(blockIdx.x); }
PIXELFAST_DEVICE inline int lane() { return thread() % kWarp; }
PIXELFAST_DEVICE inline void sync_block() { __syncthreads(); }
// For the threads of a cluster, in turn: what they wrote before they arrived is there beyond the wait. Only
// where kernels are launched in clusters.
PIXELFAST_DEVICE inline void arrive_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#else
  __trap();
#endif
}
PIXELFAST_DEVICE inline void wait_cluster() {
#if __CUDA_ARCH__ >= 900
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
PIXELFAST_DEVICE inline void fetch_add(unsigned long long* p, unsigned long long x) { atomicAdd(p, x); }
PIXELFAST_DEVICE inline unsigned long long fetch_min(unsigned long long* p, unsigned long long x) {
  return atomicMin(p, x);
}
// What was written before an add is there for who loads its result, and for those of either's block beyond a
// barrier.
PIXELFAST_DEVICE inline void add_release(uint32_t* p, uint32_t x) {
  asm volatile("red.release.gpu.add.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}
PIXELFAST_DEVICE inline uint32_t load_acquire(const uint32_t* p) {
  uint32_t x = 0;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
  return x;
}
// Alone, of memory that the host writes.
PIXELFAST_DEVICE inline uint32_t load_of_host(const uint32_t* p) {
  return *static_cast<const volatile uint32_t*>(p);
}
PIXELFAST_DEVICE inline void relax() {}

// Words of shared memory that a block has.
template <class T, int kSize>
struct Shared {
  T words[kSize];
  PIXELFAST_DEVICE T get(int i) const { return words[i]; }
  PIXELFAST_DEVICE void set(int i, T x) { words[i] = x; }
};

// Four words from i on, a multiple of four.
template <int kSize>
PIXELFAST_DEVICE inline void set_four(Shared<uint32_t, kSize>& to, int i, const uint32_t (&x)[4]) {
  *reinterpret_cast<uint4*>(&to.words[i]) = make_uint4(x[0], x[1], x[2], x[3]);
}

// Of half precision, and to it, rounded to the nearest even.
template <Half kHalf>
PIXELFAST_DEVICE inline float widen(uint16_t x) {
  if (kHalf == Half::bfloat16) return from_bf16(x);
  float found = 0;
  asm("cvt.f32.f16 %0, %1;" : "=f"(found) : "h"(x));
  return found;
}
template <Half kHalf>
PIXELFAST_DEVICE inline uint16_t narrow(float x) {
  uint16_t found = 0;
  if (kHalf == Half::float16) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(found) : "f"(x));
  } else {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(found) : "f"(x));
#else
    found = bf16_of(x);
#endif
  }
  return found;
}
// To about 2^-22 of their value.
PIXELFAST_DEVICE inline float fast_exp2(float x) {
  float found = 0;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
  return found;
}
PIXELFAST_DEVICE inline float fast_reciprocal(float x) {
  float found = 0;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
  return found;
}

// What a launch gives each block, of which no word may be touched past the end.
constexpr int kMostWords = 227 * 1024 / 4;
PIXELFAST_DEVICE inline Shared<uint32_t, kMostWords>& dynamic_memory() {
  extern __shared__ __align__(16) uint32_t dynamic_words[];
  return *reinterpret_cast<Shared<uint32_t, kMostWords>*>(dynamic_words);
}

// ---- from sm_80 on ---------------------------------------------------------------------------------------

// Starts a copy of 4, 8 or 16 bytes, which both sides are aligned to, from memory of the device to the words
// from i on; zeros if not `live`, and then `from` need only be an address. It may be read after
// wait_for_copies, by others after a barrier too.
template <int kWords, int kSize>
PIXELFAST_DEVICE inline void copy_async(Shared<uint32_t, kSize>& to, int i, const void* from, bool live) {
#if __CUDA_ARCH__ >= 800
  static_assert(kWords == 1 || kWords == 2 || kWords == 4, "a copy is of one, two or four words");
  const auto target = static_cast<uint32_t>(__cvta_generic_to_shared(&to.words[i]));
  const int bytes = live ? 4 * kWords : 0;
  if (kWords == 4) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target), "l"(from), "n"(4 * kWords),
                 "r"(bytes)
                 : "memory");
  }
#else
  __trap();
#endif
}
// Those that this thread started since the last call are a group.
PIXELFAST_DEVICE inline void group_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits for this thread's groups, but for the last `kLeft`.
template <int kLeft>
PIXELFAST_DEVICE inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

// Four matrices of eight rows of four words. Lane 8 * j + i says where row i of matrix j begins, at a
// multiple of four words; found[j] is word lane % 4 of row lane / 4 of matrix j.
template <int kSize>
PIXELFAST_DEVICE inline void load_matrices(const Shared<uint32_t, kSize>& from, int row,
                                           uint32_t (&found)[4]) {
  const auto source = static_cast<uint32_t>(__cvta_generic_to_shared(&from.words[row]));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(found[0]), "=r"(found[1]), "=r"(found[2]), "=r"(found[3])
               : "r"(source)
               : "memory");
}
// As that, of the matrices of 8 times 8 halves turned: rows lane % 4 * 2 and the next, column lane / 4.
template <int kSize>
PIXELFAST_DEVICE inline void load_matrices_turned(const Shared<uint32_t, kSize>& from, int row,
                                                  uint32_t (&found)[4]) {
  const auto source = static_cast<uint32_t>(__cvta_generic_to_shared(&from.words[row]));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(found[0]), "=r"(found[1]), "=r"(found[2]), "=r"(found[3])
               : "r"(source)
               : "memory");
}

// Two numbers rounded to bf16, in a word.
PIXELFAST_DEVICE inline uint32_t pair_of_bf16(float low, float high) {
  uint32_t word = 0;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
#else
  __trap();
#endif
  return word;
}

// sum (16 x 8 floats) += a (16 x 16 halves) times b (16 x 8 halves), by a warp. With g = lane / 4 and
// t = lane % 4, a lane holds of a, row by row: (g, 2t) and the next, (g + 8, 2t), (g, 2t + 8), (g + 8, 2t +
// 8); of b: (2t, g) and the row below, (2t + 8, g); of the sum: (g, 2t) and the next, (g + 8, 2t) and the
// next.
template <Half kHalf>
PIXELFAST_DEVICE inline void multiply_halves(const uint32_t (&a)[4], const uint32_t (&b)[2],
                                             float (&sum)[4]) {
#if __CUDA_ARCH__ >= 800
  if (kHalf == Half::bfloat16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  __trap();
#endif
}

}  // namespace simt
}  // namespace pixelfast

#else

#include "cuda/emulator.h"

#define PIXELFAST_DEVICE
#define PIXELFAST_INLINE inline
#define PIXELFAST_UNROLL(n)

#endif
