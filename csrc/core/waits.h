// Where those that share images must wait for each other: threads of a team, or blocks of a GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "core/program.h"

namespace pixelfast {

// By launch: whether it may touch what another thread has touched since the last wait. `by_rows`: if the rows
// of all launches are shared, so that a thread goes from op to op with its own; `any`: however they are
// shared.
//
// Waits of `any` may be split: all arrive where `arrives` says, at the end of a launch, and wait as late as
// before. Then a wait covers the launches up to there, and the next one those between the two.
struct Waits {
  std::vector<bool> by_rows, any, arrives;
  int64_t n_by_rows = 0, n_any = 0;  // launches that wait
};

Waits find_waits(const Program& program);
// Of its launches in another order, by index in that order.
Waits find_waits(const Program& program, const std::vector<int32_t>& order);

// The launches of a program, by index, in an order with the same results and, as a rule, the same waits. Sums
// at the start of a step that need nothing of it run before its first wait, or `spread` as evenly by
// multiply-adds as goes: each before a wait that is not for it.
std::vector<int32_t> reorder(const Program& program, const Waits& waits, bool spread);

}  // namespace pixelfast
