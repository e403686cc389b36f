// The host's side of simt.h: the threads of a grid as fibers, which take turns at barriers and shuffles.
//
// It stops the run, and says why, where a thread of a block ends or waits elsewhere while others wait at a
// barrier, where a thread does not arrive and wait at barriers of its cluster in turn, where shared memory is
// read before it is written, or before a copy to it was waited for, or past its end, or where two threads
// touch a word of it without a barrier between, and one of them writes. Shuffles, ballots and products of
// matrices are no barriers, and those of a cluster are none of shared memory.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace pixelfast {
namespace simt {

constexpr int kWarp = 32;

// Runs body() in each of `blocks` blocks, a multiple of `cluster`, of `threads` threads, a multiple of the
// warp, with `words` of dynamic memory. Throws std::runtime_error for what is said above, and what body
// throws.
void emulate(int blocks, int threads, const std::function<void()>& body, int cluster = 1, int words = 0);

// Runs a faulty kernel of a name, for tests: it throws what `emulate` does. False: there is none of that
// name.
bool provoke(const char* name);

// What a warp yields for the product of two matrices of 16 times 16 halves, for tests: it copies them, loads
// them, the second one turned, and multiplies.
void multiply_by_a_warp(Half half, const uint16_t* a, const uint16_t* b, float* product);

int thread();
int threads();
int block();
inline int lane() { return thread() % kWarp; }
void sync_block();
void sync_warp();
void arrive_cluster();
void wait_cluster();
uint64_t exchange(uint64_t x, int from);  // what lane `from` of the warp passes
void exchange(int x, int (&all)[kWarp]);  // what every lane passes
uint32_t ballot(bool x);
void relax();  // lets others run: to be called while waiting for them
[[noreturn]] void fault(const char* what);

template <class T>
T shuffle(T x, int from) {
  static_assert(sizeof(T) <= 8, "a shuffle is of a word or two");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &x, sizeof x);
  bits = exchange(bits, from);
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
template <class T>
T shuffle_xor(T x, int mask) {
  return shuffle(x, lane() ^ mask);
}
template <class T>
T shuffle_up(T x, int delta) {
  return shuffle(x, lane() >= delta ? lane() - delta : lane());
}
inline int first_of(uint32_t votes) { return votes != 0 ? __builtin_ctz(votes) : -1; }

// One fiber runs at a time, and gives way at barriers only: so these are plain.
inline void fetch_add(unsigned long long* p, unsigned long long x) { *p += x; }
inline unsigned long long fetch_min(unsigned long long* p, unsigned long long x) {
  const unsigned long long before = *p;
  if (x < before) *p = x;
  return before;
}
inline void add_release(uint32_t* p, uint32_t x) { *p += x; }
inline uint32_t load_acquire(const uint32_t* p) { return *p; }
inline uint32_t load_of_host(const uint32_t* p) { return *p; }

template <Half kHalf>
float widen(uint16_t x) {
  return kHalf == Half::bfloat16 ? from_bf16(x) : from_fp16(x);
}
template <Half kHalf>
uint16_t narrow(float x) {
  return kHalf == Half::bfloat16 ? bf16_of(x) : fp16_of(x);
}
inline float fast_exp2(float x) { return __builtin_exp2f(x); }
inline float fast_reciprocal(float x) { return 1.0f / x; }

// Who touched a word of shared memory last, and after how many barriers of the block and of the warp.
struct Touch {
  int thread = -1;  // kSeveral: of one warp, or of several
  int warp = -1;
  uint64_t block_barriers = 0, warp_barriers = 0;
};
struct Touches {
  Touch write, read;
  bool awaited = false;  // a copy to it was started, and not waited for
};

void check_read(Touches& word);
void check_write(Touches& word);
Touches& touches(const void* array, int size, int i);  // of word i of an array; a fault past its end

template <class T, int kSize>
struct Shared {
  T words[kSize];
  T get(int i) const {
    check_read(touches(this, kSize, i));
    return words[i];
  }
  void set(int i, T x) {
    check_write(touches(this, kSize, i));
    words[i] = x;
  }
};

template <int kSize>
void set_four(Shared<uint32_t, kSize>& to, int i, const uint32_t (&x)[4]) {
  if (i % 4 != 0) fault("a write of four words that is not aligned to them");
  for (int k = 0; k < 4; ++k) to.set(i + k, x[k]);
}

constexpr int kMostWords = 227 * 1024 / 4;
Shared<uint32_t, kMostWords>& dynamic_memory();

// A copy happens as late as it may: when it is waited for.
void start_copy(Touches& word, uint32_t* to, const void* from);  // a null one gives zero
void group_copies();
void wait_for_groups(int left);
template <int kLeft>
void wait_for_copies() {
  wait_for_groups(kLeft);
}
template <int kWords, int kSize>
void copy_async(Shared<uint32_t, kSize>& to, int i, const void* from, bool live) {
  static_assert(kWords == 1 || kWords == 2 || kWords == 4, "a copy is of one, two or four words");
  const bool aligned = reinterpret_cast<uintptr_t>(from) % (4 * kWords) == 0;
  if (i % kWords != 0 || (live && !aligned)) fault("a copy that is not aligned to its size");
  for (int k = 0; k < kWords; ++k) {
    start_copy(touches(&to, kSize, i + k), &to.words[i + k],
               live ? static_cast<const uint32_t*>(from) + k : nullptr);
  }
}

template <int kSize>
void load_matrices(const Shared<uint32_t, kSize>& from, int row, uint32_t (&found)[4]) {
  if (row % 4 != 0) fault("a row of a matrix that is not aligned to four words");
  int rows[kWarp];
  exchange(row, rows);
  for (int j = 0; j < 4; ++j) found[j] = from.get(rows[8 * j + lane() / 4] + lane() % 4);
}
template <int kSize>
void load_matrices_turned(const Shared<uint32_t, kSize>& from, int row, uint32_t (&found)[4]) {
  if (row % 4 != 0) fault("a row of a matrix that is not aligned to four words");
  int rows[kWarp];
  exchange(row, rows);
  const int column = lane() / 4;
  for (int j = 0; j < 4; ++j) {
    const int* const pair = &rows[8 * j + lane() % 4 * 2];
    const uint32_t low = from.get(pair[0] + column / 2), high = from.get(pair[1] + column / 2);
    found[j] = (low >> column % 2 * 16 & 0xFFFF) | (high >> column % 2 * 16 & 0xFFFF) << 16;
  }
}

uint32_t pair_of_bf16(float low, float high);
// What a lane has of the two factors: halves, in the order of the words.
void multiply_numbers(const float (&mine)[12], float (&sum)[4]);
template <Half kHalf>
void multiply_halves(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sum)[4]) {
  float mine[12];
  for (int i = 0; i < 12; ++i) {
    const uint32_t word = i < 8 ? a[i / 2] : b[i / 2 - 4];
    mine[i] = widen<kHalf>(static_cast<uint16_t>(word >> i % 2 * 16));
  }
  multiply_numbers(mine, sum);
}

}  // namespace simt
}  // namespace pixelfast
