// What the engine prepares once: weights in the order that the kernels read them, expressions with registers
// assigned, and the sizes of everything that a walk needs.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "cpu/walker.h"

namespace pixelfast {
namespace {

constexpr int64_t kAlign = 16;  // floats to a cache line

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Assigns slots to results: one is free again after its last use.
void pack_expression(const OpRecord& op, PackedOp& packed) {
  const int n = static_cast<int>(op.instructions.size());
  std::vector<int> last_use(n, -1);
  for (int i = 0; i < n; ++i) {
    const Instruction& instruction = op.instructions[i];
    if (instruction.fn > Fn::scalar) last_use[instruction.a] = i;
    if (instruction.fn > Fn::scalar && instruction.fn <= Fn::max) last_use[instruction.b] = i;
  }
  std::vector<int> free_slots;
  for (int i = 0; i < n; ++i) {
    const Instruction& instruction = op.instructions[i];
    Step step{instruction.fn, instruction.a, instruction.b, -1, false, -1, 0.0f};
    const bool reads_row = instruction.fn < Fn::scalar;
    if (reads_row) {
      step.leaf = static_cast<int>(packed.leaves.size());
      step.in_place = instruction.fn != Fn::splat && i + 1 < n;
      packed.leaves.push_back(instruction);
    } else if (instruction.fn == Fn::scalar) {
      std::memcpy(&step.scalar, &instruction.a, sizeof step.scalar);
    } else {
      const bool two = instruction.fn <= Fn::max;
      const auto release = [&](int operand) {
        const int slot = packed.steps[operand].slot;
        if (slot >= 0 && last_use[operand] == i) free_slots.push_back(slot), last_use[operand] = -1;
      };
      release(instruction.a);
      if (two) release(instruction.b);
    }
    if (!step.in_place && i + 1 < n) {
      if (free_slots.empty()) free_slots.push_back(packed.n_slots++);
      step.slot = free_slots.back();
      free_slots.pop_back();
      if (last_use[i] < 0) free_slots.push_back(step.slot);  // nobody reads it
    }
    packed.steps.push_back(step);
  }
}

}  // namespace

AlignedFloats::AlignedFloats(int64_t n) : size_(n) {
  if (n == 0) return;
  // calloc, since it hands out zero pages that cost nothing until they are touched.
  memory_.reset(std::calloc(static_cast<size_t>(n) + kAlign, sizeof(float)));
  if (!memory_) throw std::bad_alloc();
  const auto address = reinterpret_cast<uintptr_t>(memory_.get());
  aligned_ = reinterpret_cast<float*>((address + 63) / 64 * 64);
}

void AlignedFloats::Free::operator()(void* p) const { std::free(p); }

Engine::Engine(const int32_t* words, int64_t n_words, const float* data, int64_t n_data,
               const Kernels& kernels)
    : kernels_(kernels), program_(decode_program(words, n_words, n_data)), data_(data, data + n_data) {
  ops_.resize(program_.ops.size());
  int64_t size = 0, widest = program_.levels;
  for (size_t i = 0; i < ops_.size(); ++i) {
    const OpRecord& op = program_.ops[i];
    PackedOp& packed = ops_[i];
    for (int column = 0; column < op.product_channels; column += kernels.panel) {
      const int columns = std::min(kernels.panel, op.product_channels - column);
      const int64_t padded = round_up(columns, kernels.lanes);
      packed.panels.push_back({size, size + op.depth * padded, column, columns});
      size = round_up(size + (op.depth + 1) * padded, kAlign);
    }
    for (const Tap& tap : op.taps) {
      packed.tap_channels.push_back(tap.channels);
      widest = std::max<int64_t>(widest, tap.channels);
    }
    pack_expression(op, packed);
    if (op.op == Op::attend) {
      most_keys_ = std::max<int64_t>(most_keys_, program_.buffers[op.attention.key.buffer].width);
    }
    widest = std::max<int64_t>(widest, op.channels);
    most_taps_ = std::max(most_taps_, op.taps.size());
    most_leaves_ = std::max(most_leaves_, packed.leaves.size());
    most_slots_ = std::max(most_slots_, packed.n_slots);
    most_products_ = std::max<int64_t>(most_products_, op.product_channels);
  }
  packed_ = AlignedFloats(size);
  zeros_ = AlignedFloats(widest);
  for (size_t i = 0; i < ops_.size(); ++i) pack(i);
  // An odd number of cache lines, so that the images' rows do not all fall into the same sets of the cache.
  arena_stride_ = round_up(program_.arena_floats, kAlign);
  if (arena_stride_ / kAlign % 2 == 0) arena_stride_ += kAlign;
  int64_t positions = 0;
  for (const Launch& launch : program_.launches) positions += launch.positions;
  if (positions > 0) mean_positions_ = static_cast<double>(positions) / program_.launches.size();
}

Engine::~Engine() = default;

void Engine::pack(size_t index) {
  const OpRecord& op = program_.ops[index];
  for (const Panel& panel : ops_[index].panels) {
    const int64_t padded = round_up(panel.columns, kernels_.lanes);
    for (int64_t k = 0; k < op.depth; ++k) {
      const float* row = data_.data() + op.weight + k * op.product_channels + panel.column;
      std::copy_n(row, panel.columns, packed_.get() + panel.weights + k * padded);
    }
    if (op.bias >= 0) {
      std::copy_n(data_.data() + op.bias + panel.column, panel.columns, packed_.get() + panel.bias);
    }
  }
}

}  // namespace pixelfast
