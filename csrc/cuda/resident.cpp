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
  kept.residents.resize(flat.ops.size(), {-1, 0, 0});
  kept.tables = flat.tables_nbytes() <= nbytes;
  const size_t tables = kept.tables ? flat.tables_nbytes() : 0;
  std::vector<size_t> used(blocks, tables);
  const int32_t group = flat.halves.empty() ? 1 : kGroup;
  int next = 0;
  for (const int32_t i : ops) {
    const FlatOp& op = flat.ops[i];
    const int32_t width = (op.columns / group + blocks - 1) / blocks * group;
    const int slices = (op.columns + width - 1) / width;
    size_t place = 0;
    for (int s = 0; s < slices; ++s) place = std::max(place, used[(next + s) % blocks]);
    const size_t end = place + static_cast<size_t>(width) * op.steps * op.n_parts * sizeof(uint32_t);
    if (end > nbytes) continue;
    kept.residents[i] = {static_cast<int32_t>(place / sizeof(uint32_t)), width, next};
    for (int s = 0; s < slices; ++s) used[(next + s) % blocks] = end;
    kept.weights_nbytes += weights_nbytes(op);
    next = (next + slices) % blocks;
  }
  kept.shared_nbytes = *std::max_element(used.begin(), used.end());
  return kept;
}

int64_t weights_nbytes(const FlatOp& op) {
  return static_cast<int64_t>(op.steps) * op.columns * op.n_parts * static_cast<int64_t>(sizeof(uint32_t));
}

}  // namespace cuda
}  // namespace pixelfast
