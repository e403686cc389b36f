#include <array>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "cuda/fiber.h"
#include "cuda/simt.h"

namespace pixelfast {
namespace simt {
namespace {

constexpr size_t kStackBytes = size_t{128} << 10;
constexpr int kSeveral = -2;

enum class State { ready, at_block, at_warp, at_meet, at_cluster, done };

struct Copy {
  Touches* word;
  uint32_t* to;
  const void* from;
};

struct Fiber {
  Context context;
  State state = State::ready;
  int block = 0, thread = 0;
  int64_t arrived = 0, waited = 0;               // how often at barriers of its cluster
  std::vector<std::vector<Copy>> copies = {{}};  // by group, and those that are in none yet
};

struct Grid {
  const std::function<void()>* body = nullptr;
  int threads = 0, cluster = 1;  // of a block, and blocks of a cluster
  std::vector<Fiber> fibers;     // block by block
  std::vector<uint64_t> block_barriers, warp_barriers;
  std::vector<int64_t> arrivals;                // of all threads of each cluster
  std::vector<uint64_t> passed;                 // by fiber: in a shuffle
  std::vector<std::array<float, 12>> operands;  // and in a product of matrices: of a, then of b
  std::unordered_map<const void*, std::vector<Touches>> touched;
  std::vector<std::vector<uint32_t>> dynamic_memory;  // of the blocks
  Context scheduler;
  Fiber* current = nullptr;
  std::exception_ptr error;
};

thread_local Grid* grid = nullptr;

int warp_of(const Fiber& f) { return (f.block * grid->threads + f.thread) / kWarp; }

void enter() {
  try {
    (*grid->body)();
    const Fiber& me = *grid->current;
    if (me.arrived != me.waited) fault("an end between arriving at a barrier of a cluster and waiting");
  } catch (...) {
    grid->error = std::current_exception();
  }
  grid->current->state = State::done;
  grid->current->context.switch_to(grid->scheduler);
}

void wait_as(State state) {
  Fiber& me = *grid->current;
  me.state = state;
  me.context.switch_to(grid->scheduler);
}

// For the lanes of a warp that pass values to each other, which orders nothing in memory.
void meet() { wait_as(State::at_meet); }

// Lets go on who waits at a barrier that all have reached. Returns whether anybody may.
bool release() {
  const auto all = [&](size_t first, int n, State state) {
    int count = 0;
    for (int i = 0; i < n; ++i) count += grid->fibers[first + i].state == state;
    return count == n;
  };
  const auto let = [&](size_t first, int n) {
    for (int i = 0; i < n; ++i) grid->fibers[first + i].state = State::ready;
  };
  for (size_t w = 0; w < grid->warp_barriers.size(); ++w) {
    if (all(w * kWarp, kWarp, State::at_warp)) let(w * kWarp, kWarp), ++grid->warp_barriers[w];
    if (all(w * kWarp, kWarp, State::at_meet)) let(w * kWarp, kWarp);
  }
  for (size_t b = 0; b < grid->block_barriers.size(); ++b) {
    const size_t first = b * grid->threads;
    if (all(first, grid->threads, State::at_block)) let(first, grid->threads), ++grid->block_barriers[b];
  }
  const int wide = grid->cluster * grid->threads;
  for (Fiber& f : grid->fibers) {
    const bool all_arrived = grid->arrivals[f.block / grid->cluster] >= f.arrived * wide;
    if (f.state == State::at_cluster && all_arrived) f.state = State::ready;
  }
  for (const Fiber& f : grid->fibers) {
    if (f.state == State::ready) return true;
  }
  return false;
}

void run_all() {
  bool going = true;
  while (going) {
    for (Fiber& f : grid->fibers) {
      if (f.state != State::ready) continue;
      grid->current = &f;
      grid->scheduler.switch_to(f.context);
      if (grid->error) std::rethrow_exception(grid->error);
    }
    going = release();
  }
  for (const Fiber& f : grid->fibers) {
    if (f.state == State::done) continue;
    const char* whose = f.state == State::at_block     ? "block"
                        : f.state == State::at_cluster ? "cluster"
                                                       : "warp";
    throw std::runtime_error("[emulator] thread " + std::to_string(f.thread) + " of block " +
                             std::to_string(f.block) + " waits at a barrier of its " + whose +
                             " that not all threads reach");
  }
}

Touch now() {
  const Fiber& f = *grid->current;
  const int warp = warp_of(f);
  return {f.thread, warp, grid->block_barriers[f.block], grid->warp_barriers[warp]};
}

// Whether a barrier lies between an earlier touch and one now.
bool ordered(const Touch& before, const Touch& after) {
  if (before.thread == -1 || before.thread == after.thread) return true;
  if (before.block_barriers != after.block_barriers) return true;
  return before.warp == after.warp && before.warp_barriers != after.warp_barriers;
}

}  // namespace

void emulate(int blocks, int threads, const std::function<void()>& body, int cluster, int words) {
  Grid mine;
  mine.body = &body;
  mine.threads = threads;
  mine.cluster = cluster;
  if (blocks < 1 || threads < kWarp || threads % kWarp != 0) {
    throw std::runtime_error("[emulator] a block has a multiple of 32 threads");
  }
  if (cluster < 1 || blocks % cluster != 0) {
    throw std::runtime_error("[emulator] a grid has a multiple of a cluster's blocks");
  }
  mine.fibers.resize(static_cast<size_t>(blocks) * threads);
  mine.passed.resize(mine.fibers.size());
  mine.operands.resize(mine.fibers.size());
  mine.block_barriers.resize(blocks);
  mine.arrivals.resize(blocks / cluster);
  mine.warp_barriers.resize(mine.fibers.size() / kWarp);
  mine.dynamic_memory.resize(blocks, std::vector<uint32_t>(words + 1));
  for (const auto& memory : mine.dynamic_memory) mine.touched[memory.data()].resize(words);
  grid = &mine;
  for (size_t i = 0; i < mine.fibers.size(); ++i) {
    Fiber& f = mine.fibers[i];
    f.block = static_cast<int>(i) / threads, f.thread = static_cast<int>(i) % threads;
    f.context.start(enter, kStackBytes);
  }
  try {
    run_all();
  } catch (...) {
    grid = nullptr;
    throw;
  }
  grid = nullptr;
}

int thread() { return grid->current->thread; }
int threads() { return grid->threads; }
int block() { return grid->current->block; }
void sync_block() { wait_as(State::at_block); }
void sync_warp() { wait_as(State::at_warp); }
void arrive_cluster() {
  Fiber& me = *grid->current;
  if (me.arrived++ != me.waited) fault("a second arrival at a barrier of a cluster without a wait");
  ++grid->arrivals[me.block / grid->cluster];
}
void wait_cluster() {
  Fiber& me = *grid->current;
  if (++me.waited != me.arrived) fault("a wait at a barrier of a cluster without an arrival");
  wait_as(State::at_cluster);
}
void relax() { wait_as(State::ready); }
void fault(const char* what) {
  throw std::runtime_error("[emulator] " + std::string(what) + ", by thread " + std::to_string(thread()) +
                           " of block " + std::to_string(block()));
}

uint64_t exchange(uint64_t x, int from) {
  const size_t first = static_cast<size_t>(grid->current - grid->fibers.data()) / kWarp * kWarp;
  if (from < 0 || from >= kWarp) fault("a shuffle from a lane that there is not");
  grid->passed[first + lane()] = x;
  meet();
  const uint64_t found = grid->passed[first + from];
  meet();
  return found;
}

void exchange(int x, int (&all)[kWarp]) {
  const size_t first = static_cast<size_t>(grid->current - grid->fibers.data()) / kWarp * kWarp;
  grid->passed[first + lane()] = static_cast<uint32_t>(x);
  meet();
  for (int i = 0; i < kWarp; ++i) all[i] = static_cast<int>(grid->passed[first + i]);
  meet();
}

uint32_t ballot(bool x) {
  uint32_t votes = 0;
  const size_t first = static_cast<size_t>(grid->current - grid->fibers.data()) / kWarp * kWarp;
  grid->passed[first + lane()] = x;
  meet();
  for (int i = 0; i < kWarp; ++i) votes |= static_cast<uint32_t>(grid->passed[first + i]) << i;
  meet();
  return votes;
}

Touches& touches(const void* array, int size, int i) {
  const auto [found, is_new] = grid->touched.try_emplace(array);
  std::vector<Touches>& words = found->second;
  if (is_new) words.resize(size);
  if (i < 0 || i >= static_cast<int>(words.size())) fault("an access past the end of shared memory");
  return words[i];
}

Shared<uint32_t, kMostWords>& dynamic_memory() {
  return *reinterpret_cast<Shared<uint32_t, kMostWords>*>(grid->dynamic_memory[block()].data());
}

void check_read(Touches& word) {
  const Touch me = now();
  if (word.awaited) fault("a read of shared memory to which a copy was not waited for");
  if (word.write.thread == -1) fault("a read of shared memory that was not written");
  if (!ordered(word.write, me))
    fault("a read of shared memory that another thread wrote since the last barrier");
  Touch& r = word.read;
  const bool with_others = !ordered(r, me);
  r = {with_others ? kSeveral : me.thread, with_others && r.warp != me.warp ? kSeveral : me.warp,
       me.block_barriers, me.warp_barriers};
}

void check_write(Touches& word) {
  const Touch me = now();
  if (!ordered(word.write, me))
    fault("a write of shared memory that another thread wrote since the last barrier");
  if (!ordered(word.read, me))
    fault("a write of shared memory that another thread read since the last barrier");
  word.write = me;
}

void start_copy(Touches& word, uint32_t* to, const void* from) {
  check_write(word);
  word.awaited = true;
  grid->current->copies.back().push_back({&word, to, from});
}
void group_copies() { grid->current->copies.emplace_back(); }
void wait_for_groups(int left) {
  auto& groups = grid->current->copies;
  for (; static_cast<int>(groups.size()) - 1 > left; groups.erase(groups.begin())) {
    for (const Copy& copy : groups.front()) {
      check_write(*copy.word);
      copy.word->awaited = false;
      *copy.to = 0;
      if (copy.from != nullptr) __builtin_memcpy(copy.to, copy.from, sizeof *copy.to);
    }
  }
}

uint32_t pair_of_bf16(float low, float high) { return bf16_of(low) | uint32_t{bf16_of(high)} << 16; }

// A chain for each sum, which is not how a GPU rounds: close to it, not equal.
void multiply_numbers(const float (&mine)[12], float (&sum)[4]) {
  const size_t first = static_cast<size_t>(grid->current - grid->fibers.data()) / kWarp * kWarp;
  std::array<float, 12>* const operands = &grid->operands[first];
  for (int i = 0; i < 12; ++i) operands[lane()][i] = mine[i];
  meet();
  for (int e = 0; e < 4; ++e) {
    const int row = lane() / 4 + e / 2 * 8, column = lane() % 4 * 2 + e % 2;
    for (int k = 0; k < 16; ++k) {
      const int t = k % 8 / 2, far = k / 8;
      const float x = operands[row % 8 * 4 + t][2 * (row / 8 + 2 * far) + k % 2];
      sum[e] += x * operands[column * 4 + t][2 * (4 + far) + k % 2];  // products of halves are exact
    }
  }
  meet();
}

void multiply_by_a_warp(Half half, const uint16_t* a, const uint16_t* b, float* product) {
  Shared<uint32_t, 256> memory;  // rows of eight words: of a, then of b
  emulate(1, kWarp, [&] {
    const uint16_t* const mine = thread() < 16 ? a + thread() * 16 : b + (thread() - 16) * 16;
    for (int i = 0; i < 8; i += 4) copy_async<4>(memory, thread() * 8 + i, mine + 2 * i, true);
    group_copies();
    wait_for_copies<0>();
    sync_warp();
    const int row = lane() % 16 * 8 + lane() / 16 * 4;
    uint32_t rows[4], columns[4];
    load_matrices(memory, row, rows);
    load_matrices_turned(memory, 128 + row, columns);
    for (int side = 0; side < 2; ++side) {
      const uint32_t these[2] = {columns[2 * side], columns[2 * side + 1]};
      float sum[4] = {};
      half == Half::bfloat16 ? multiply_halves<Half::bfloat16>(rows, these, sum)
                             : multiply_halves<Half::float16>(rows, these, sum);
      for (int e = 0; e < 4; ++e) {
        product[(lane() / 4 + e / 2 * 8) * 16 + side * 8 + lane() % 4 * 2 + e % 2] = sum[e];
      }
    }
  });
}

bool provoke(const char* name) {
  const std::string wanted = name;
  Shared<int, 64> memory;
  const auto kernel = [&](const std::function<void()>& body) {
    emulate(1, 64, body);
    return true;
  };
  const int far = kWarp + 1;  // a thread of another warp
  if (wanted == "none") {
    return kernel([&] {
      memory.set(thread(), thread());
      sync_block();
      const int other = memory.get(63 - thread());
      const int total = shuffle_xor(other, 1) + other + static_cast<int>(ballot(true) & 1);
      sync_block();
      memory.set(thread(), total);
      sync_warp();
      memory.get(thread() ^ 1);
    });
  }
  if (wanted == "unwritten") return kernel([&] { memory.get(thread()); });
  if (wanted == "past the end") return kernel([&] { memory.set(thread() + 1, 0); });
  if (wanted == "past the end of the block's") {
    emulate(1, kWarp, [] { dynamic_memory().set(thread(), 0); }, 1, 5);
    return true;
  }
  if (wanted == "barrier") {
    return kernel([&] {
      if (thread() != 5) sync_block();
    });
  }
  if (wanted == "cluster barrier") {
    const auto body = [&] {
      if (block() == 2 && thread() == 7) return sync_block();
      arrive_cluster();
      wait_cluster();
    };
    emulate(4, 64, body, 2);
    return true;
  }
  if (wanted == "two arrivals") return kernel([&] { arrive_cluster(), arrive_cluster(); });
  if (wanted == "no arrival") return kernel([&] { wait_cluster(); });
  if (wanted == "no wait for the cluster") return kernel([&] { arrive_cluster(); });
  if (wanted == "mixed barriers") return kernel([&] { thread() == 5 ? sync_warp() : sync_block(); });
  if (wanted == "two writers") return kernel([&] { memory.set(0, 1); });
  if (wanted == "no wait") {
    static const uint32_t source[64] = {};
    Shared<uint32_t, 64> words;
    return kernel([&] {
      copy_async<1>(words, thread(), &source[thread()], true);
      group_copies();
      wait_for_copies<1>();
      sync_block();
      words.get(thread());
    });
  }
  if (wanted == "unaligned copy") {
    static const uint32_t source[64] = {};
    Shared<uint32_t, 64> words;
    return kernel([&] { copy_async<2>(words, thread(), source, true); });
  }
  if (wanted == "write, then read") {
    return kernel([&] {
      if (thread() == 0) memory.set(0, 1);
      sync_warp();
      if (thread() == far) memory.get(0);
    });
  }
  if (wanted == "write, shuffle, then read") {
    return kernel([&] {
      memory.set(thread(), 1);
      shuffle_xor(1, 1);
      ballot(true);
      memory.get(thread() ^ 1);
    });
  }
  if (wanted == "read, then write") {
    return kernel([&] {
      if (thread() == 0) memory.set(0, 1);
      sync_block();
      if (thread() < 2) memory.get(0);
      sync_warp();
      if (thread() == far) memory.set(0, 2);
    });
  }
  return false;
}

}  // namespace simt
}  // namespace pixelfast
