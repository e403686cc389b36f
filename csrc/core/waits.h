// Where those that share images must wait for each other: threads of a team, or blocks of a GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "core/program.h"

namespace pixelfast {

// By launch: whether it may touch what another thread has touched since the last wait. `by_rows`: if the rows
// of all launches are shared, so that a thread goes from op to op with its own; `any`: however they are
// shared.
struct Waits {
  std::vector<bool> by_rows, any;
  int64_t n_by_rows = 0, n_any = 0;  // launches that wait
};

Waits find_waits(const Program& program);

}  // namespace pixelfast
