// What the blocks of a team keep in their shared memory for the whole of a run: the tables, and weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/flat.h"

namespace pixelfast {
namespace cuda {

struct Residency {
  std::vector<Resident> residents;  // of the ops
  bool tables = false;
  size_t shared_nbytes = 0;    // of each block
  int64_t weights_nbytes = 0;  // of the weights, as they lie in memory
};

// All ops with weights, those first that should be near: whose launches wait, most of them, for what others
// write, then by how often an image needs a weight of theirs.
std::vector<int32_t> by_urgency(const Flat& flat);

// The tables, and then of these ops as many as fit, in that order, into `nbytes` of each of `blocks` blocks.
// Each block has as many consecutive channels of an op, and blocks take turns from op to op.
Residency keep(const Flat& flat, const std::vector<int32_t>& ops, int blocks, size_t nbytes);

// Of the weights of an op, as they lie in memory.
int64_t weights_nbytes(const FlatOp& op);

}  // namespace cuda
}  // namespace pixelfast
