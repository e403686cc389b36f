// How threads share a run: images, rows of a launch, or its output channels.
#include <algorithm>
#include <cmath>

#include "cpu/measure.h"
#include "cpu/runtime.h"
#include "cpu/threads.h"

namespace pixelfast {
namespace {

constexpr double kWait = 40000;   // multiply-adds that take as long as waiting for another thread
constexpr double kUneven = 1.35;  // shares of a launch are, and tiles are smaller
constexpr double kMapDepth = 16;  // of an op without a product: as long as one of that depth
constexpr double kTileSums = 8;   // vectors of sums that keep multiply-adds busy

}  // namespace

// As many images as fill a block of rows, so that weights are read once for many; but no more than the cache
// holds, or than there are weights to be read, or than hide the reading of these; and the same number for
// each team.
int Engine::choose_chunk(int64_t n, int teams) const {
  const int64_t arena_bytes = std::max<int64_t>(arena_stride_, 1) * static_cast<int64_t>(sizeof(float));
  const int64_t filling = std::max<int64_t>(1, kBlockRows / typical_positions_);
  int64_t bytes = std::max(kArenaBytes, weights_nbytes());
  if (attends_) {  // a step reads all of the arena: that and the weights stay in the cache, or little does
    const int64_t left = (kCacheBytes - weights_nbytes()) / teams;
    bytes = left >= arena_bytes ? left : 4 * weights_nbytes();
  } else if (weights_nbytes() > second_level()) {
    const double hiding = std::ceil(far_fetch() / static_cast<double>(typical_positions_));
    bytes = std::max(bytes, static_cast<int64_t>(hiding) * arena_bytes);
  }
  const int64_t at_once = std::min(filling, std::max<int64_t>(1, bytes / arena_bytes)) * teams;
  const int64_t nearest = (2 * n + at_once) / (2 * at_once), enough = (n + at_once - 1) / at_once;
  const int64_t rounds = std::max<int64_t>(1, attends_ ? enough : nearest);
  return static_cast<int>((n + rounds * teams - 1) / (rounds * teams));
}

int Engine::parts_of(int32_t op) const {
  const OpRecord& record = program_.ops[op];
  return record.op == Op::attend ? record.attention.heads : std::max(ops_[op].vectors, 1);
}

// Where rows are few, a product waits for its weights, which are the nearer the fewer a thread has of them,
// or for its own sums.
double Engine::cost(int32_t op, double rows, double parts, int sharing) const {
  const PackedOp& packed = ops_[op];
  if (program_.ops[op].op == Op::attend) return rows * parts * loads_[op].head_work;
  if (packed.panels.empty()) return kMapDepth * kernels_.lanes * rows * parts;
  const double fetch = loads_[op].since_nbytes / sharing <= second_level() ? kNearFetch : far_fetch();
  const auto products = static_cast<double>(packed.parts.size());
  const double sums = kTileSums / std::min<double>(parts * products, kVectors);
  return static_cast<double>(packed.depth) * kernels_.lanes * products * parts *
         std::max({rows, fetch, sums});
}

// By rows unless shares of the output channels leave the slowest thread less to do, a wait included.
bool Engine::shares_rows(int32_t op, int64_t rows, int size) const {
  const int parts = parts_of(op);
  const auto share = [&](int64_t n) { return static_cast<double>((n + size - 1) / size); };
  return cost(op, share(rows), parts, 1) <=
         cost(op, static_cast<double>(rows), share(parts), size) + size * kWait;
}

// Threads on images of their own need not wait for each other. Those on the same images must, after nearly
// every launch, and that pays where launches are long.
Crew Engine::choose_crew(const CpuRequest& r) const {
  const int threads = r.threads > 0 ? r.threads : default_threads();
  if (threads > 1) std::call_once(waits_found_, [&] { waits_ = find_waits(program_); });
  Crew best{};
  double least = 0;
  for (int size = 1; size <= threads; ++size) {
    if (r.team > 0 && size != std::min(r.team, threads)) continue;
    Crew crew{static_cast<int>(std::min<int64_t>(threads / size, r.n)), size, 0};
    crew.chunk =
        static_cast<int>(std::min<int64_t>(r.n, r.chunk > 0 ? r.chunk : choose_chunk(r.n, crew.teams)));
    const int64_t chunks = (r.n + crew.chunk - 1) / crew.chunk;
    crew.teams = static_cast<int>(std::min<int64_t>(crew.teams, chunks));
    const int64_t rounds = (chunks + crew.teams - 1) / crew.teams;
    double work = 0;
    int64_t by_rows = 0, launches = 0;
    for (int32_t op = 0; op < static_cast<int32_t>(ops_.size()); ++op) {
      if (loads_[op].launches == 0) continue;
      const double positions = static_cast<double>(loads_[op].positions) / loads_[op].launches;
      const auto rows = static_cast<int64_t>(std::ceil(positions * crew.chunk));
      const bool shared = shares_rows(op, rows, size);
      const double some_rows = positions * crew.chunk / (shared ? size : 1);
      const double parts = std::ceil(parts_of(op) / (shared ? 1.0 : size));
      work += loads_[op].launches * cost(op, some_rows, parts, shared ? 1 : size);
      by_rows += shared ? loads_[op].launches : 0, launches += loads_[op].launches;
    }
    const double share = static_cast<double>(by_rows) / std::max<int64_t>(launches, 1);
    const double waits = share * waits_.n_by_rows + (1 - share) * waits_.n_any;
    if (size > 1) work = kUneven * work + waits * size * kWait;
    if (best.size == 0 || rounds * work < least) best = crew, least = rounds * work;
  }
  return best;
}

}  // namespace pixelfast
