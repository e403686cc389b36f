#include "cuda/resident.h"

#include <algorithm>
#include <tuple>

namespace pixelfast {
namespace cuda {

std::vector<int32_t> by_urgency(const Flat& flat) {
  struct Count {
    int64_t launches = 0, waits = 0, positions = 0;
  };
  std::vector<Count> counts(flat.ops.size());
  for (const FlatLaunch& launch : flat.launches) {
    Count& count = counts[launch.op];
    ++count.launches, count.waits += launch.waits, count.positions += launch.positions;
  }
  std::vector<int32_t> found;
  for (size_t i = 0; i < flat.ops.size(); ++i) {
    if (weights_nbytes(flat.ops[i]) > 0) found.push_back(static_cast<int32_t>(i));
  }
  const auto key = [&](int32_t op) {
    const Count& count = counts[op];
    return std::make_tuple(2 * count.waits <= count.launches, -count.positions);
  };
  std::stable_sort(found.begin(), found.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
  return found;
}

Residency keep(const Flat& flat, const std::vector<int32_t>& ops, int blocks, size_t nbytes) {
  Residency kept;
  kept.residents.resize(flat.ops.size(), {-1, 0});
  kept.tables = flat.tables_nbytes() <= nbytes;
  if (kept.tables) kept.shared_nbytes = flat.tables_nbytes();
  const int32_t group = flat.halves.empty() ? 1 : kGroup;
  for (const int32_t i : ops) {
    const FlatOp& op = flat.ops[i];
    const int64_t groups = (op.columns / group + blocks - 1) / blocks;  // of a block
    const int64_t size = groups * group * op.steps * op.n_parts * static_cast<int64_t>(sizeof(uint32_t));
    if (size > static_cast<int64_t>(nbytes - kept.shared_nbytes)) continue;
    kept.residents[i] = {static_cast<int32_t>(kept.shared_nbytes / sizeof(uint32_t)),
                         static_cast<int32_t>(groups * group)};
    kept.shared_nbytes += static_cast<size_t>(size);
    kept.weights_nbytes += weights_nbytes(op);
  }
  return kept;
}

int64_t weights_nbytes(const FlatOp& op) {
  return static_cast<int64_t>(op.steps) * op.columns * op.n_parts * static_cast<int64_t>(sizeof(uint32_t));
}

}  // namespace cuda
}  // namespace pixelfast
