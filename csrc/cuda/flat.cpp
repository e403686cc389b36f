#include "cuda/flat.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/bf16.h"
#include "core/waits.h"

namespace pixelfast {
namespace cuda {
namespace {

// Multiply-adds at a position of an op, each product as often as its expression reads it.
int64_t work_of(const OpRecord& op, int32_t x) {
  if (op.op == Op::attend) {
    const Attention& a = op.attention;
    int64_t keys = 0;
    for (int32_t r = a.first[x]; r < a.first[x + 1]; ++r) keys += a.runs[2 * r + 1] - a.runs[2 * r];
    return keys * a.heads * (a.key_channels + a.value_channels);
  }
  return op.depth * op.product_channels;
}

// The weights of an op as the bf16 mode reads them (flat.h).
void append_halves(std::vector<uint32_t>& halves, const FlatOp& f, const OpRecord& op, const Part* parts,
                   const float* data) {
  const size_t begin = halves.size();
  const int64_t words = static_cast<int64_t>(f.steps) * f.columns;  // of a part
  halves.resize(begin + static_cast<size_t>(words * f.n_parts));
  for (int32_t p = 0; p < f.n_parts; ++p) {
    for (int32_t c = 0; c < op.channels; ++c) {
      uint32_t* const column =
          &halves[begin + p * words + c / kGroup * kGroup * int64_t{f.steps} + c % kGroup];
      const float* weight = data + op.weight + parts[p].channel + c;
      int64_t step = 0;
      for (const Tap& tap : op.taps) {
        for (int32_t i = 0; i < tap.channels; ++i, weight += op.product_channels) {
          column[(step + i / 2) * kGroup] |= uint32_t{bf16_of(*weight)} << i % 2 * 16;
        }
        step += words_of(tap.channels, true);
      }
    }
  }
}

// The device counts these in 32 bits; decode_program bounds all others.
void check_counts(const Program& program) {
  int64_t places = 0, positions = 0;
  for (const Buffer& b : program.buffers) places += int64_t{b.height} + b.width;
  for (const Launch& launch : program.launches) positions += launch.n_runs == 1 ? 0 : launch.positions;
  const int64_t most = std::numeric_limits<int32_t>::max();
  if (places <= most && positions <= most) return;
  throw std::invalid_argument("[program] too large for a device: " + std::to_string(places) +
                              " rows and columns of buffers, " + std::to_string(positions) +
                              " positions of launches");
}

// With their waits, and where steps end.
std::vector<FlatLaunch> in_order(const std::vector<FlatLaunch>& launches, const Program& program,
                                 const std::vector<int32_t>& order) {
  const Waits waits = find_waits(program, order);
  std::vector<FlatLaunch> found;
  for (size_t i = 0; i < order.size(); ++i) {
    found.push_back(launches[order[i]]);
    found[i].waits = waits.any[i], found[i].arrives = waits.arrives[i];
  }
  for (const int32_t end : program.step_ends) {
    if (end > 0) found[end - 1].ends_step = 1;
  }
  return found;
}

}  // namespace

Flat::Flat(const Program& program, const float* data) {
  check_counts(program);
  for (const Buffer& b : program.buffers) {
    const auto place = [&](int64_t at) { places.push_back(static_cast<int32_t>(at)); };
    const auto rows = static_cast<int32_t>(places.size());
    for (int32_t y = 0; y < b.height; ++y) place(b.offset + y % b.rows * b.row_stride);
    const auto columns = static_cast<int32_t>(places.size());
    for (int32_t x = 0; x < b.width; ++x) place(x % b.columns * b.col_stride);
    buffers.push_back(
        {b.offset, b.col_stride, static_cast<int32_t>(b.space), b.height, b.width, rows, columns});
  }
  for (const OpRecord& op : program.ops) {
    const Attention& a = op.attention;
    FlatOp f{};
    f.op = static_cast<int32_t>(op.op), f.colour = op.colour, f.buffer = op.buffer, f.channel = op.channel;
    f.channels = op.channels, f.table = op.table, f.stride_y = op.stride_y, f.stride_x = op.stride_x;
    f.product_channels = op.product_channels, f.bias = op.bias;
    f.start_buffer = op.op == Op::conv ? op.start.buffer : -1, f.start_channel = op.start.channel;
    f.first_tap = static_cast<int32_t>(taps.size()), f.n_taps = static_cast<int32_t>(op.taps.size());
    std::vector<Instruction> code = op.instructions;
    if (op.op == Op::conv && code.empty()) code.push_back({Fn::product, 0, 0, 0, 0});
    f.first_instruction = static_cast<int32_t>(instructions.size());
    f.n_instructions = static_cast<int32_t>(code.size());
    f.first_part = static_cast<int32_t>(parts.size());
    for (int32_t i = 0; i < f.n_instructions; ++i) {
      if (code[i].fn == Fn::product) parts.push_back({code[i].a, i});
    }
    f.n_parts = static_cast<int32_t>(parts.size()) - f.first_part;
    for (const Tap& tap : op.taps) f.steps += words_of(tap.channels, data != nullptr);
    f.weight = op.weight, f.columns = op.channels;
    if (data != nullptr) {
      f.weight = static_cast<int64_t>(halves.size());
      f.columns = (op.channels + kGroup - 1) / kGroup * kGroup;
      append_halves(halves, f, op, parts.data() + f.first_part, data);
    }
    f.heads = a.heads, f.key_channels = a.key_channels, f.value_channels = a.value_channels;
    f.query_buffer = a.query.buffer, f.query_channel = a.query.channel;
    f.key_buffer = a.key.buffer, f.key_channel = a.key.channel;
    f.value_buffer = a.value.buffer, f.value_channel = a.value.channel;
    f.attention_bias = a.bias, f.bias_heads = a.bias_heads;
    f.first_runs = static_cast<int32_t>(attention.size());
    attention.insert(attention.end(), a.first.begin(), a.first.end());
    f.runs = static_cast<int32_t>(attention.size());
    attention.insert(attention.end(), a.runs.begin(), a.runs.end());
    if (op.op == Op::attend) {
      most_keys = std::max<int64_t>(most_keys, program.buffers[a.key.buffer].width);
    }
    taps.insert(taps.end(), op.taps.begin(), op.taps.end());
    instructions.insert(instructions.end(), code.begin(), code.end());
    if (f.n_instructions > kOwnRegisters) most_instructions = std::max(most_instructions, f.n_instructions);
    ops.push_back(f);
  }
  for (const Launch& launch : program.launches) {
    const Run& only = program.runs[launch.first_run];
    const int32_t first = launch.n_runs == 1 ? -1 : static_cast<int32_t>(positions.size());
    most_positions = std::max(most_positions, launch.positions);
    launches.push_back({launch.op, static_cast<int32_t>(launch.positions), first, only.y, only.x, only.dy,
                        only.dx, 0, 0, 0});
    for (int32_t r = launch.first_run; r < launch.first_run + launch.n_runs; ++r) {
      const Run& run = program.runs[r];
      for (int32_t k = 0; first >= 0 && k < run.n; ++k) {
        positions.push_back({run.y + k * run.dy, run.x + k * run.dx});
      }
      const OpRecord& op = program.ops[launch.op];
      if (op.op != Op::attend) {
        multiply_adds += run.n * work_of(op, 0);
      } else {
        for (int32_t k = 0; k < run.n; ++k) multiply_adds += work_of(op, run.x + k * run.dx);
      }
    }
  }
  const Waits waits = find_waits(program);
  const std::vector<int32_t> order = reorder(program, waits, false), other = reorder(program, waits, true);
  if (other != order) spread = in_order(launches, program, other);
  launches = in_order(launches, program, order);
}

namespace {

// Of a table, a multiple of what any of them is aligned to.
template <class T>
size_t padded_nbytes(const std::vector<T>& table) {
  return (table.size() * sizeof(T) + 7) / 8 * 8;
}

}  // namespace

TablePlaces Flat::table_places() const {
  int64_t end = 0;
  const auto take = [&end](const auto& table) {
    const int64_t begin = end;
    end += static_cast<int64_t>(padded_nbytes(table));
    return begin;
  };
  TablePlaces at{};
  at.buffers = {take(buffers)}, at.ops = {take(ops)}, at.taps = {take(taps)};
  at.instructions = {take(instructions)}, at.parts = {take(parts)}, at.places = {take(places)};
  return at;
}

size_t Flat::tables_nbytes() const { return table_places().places.begin + padded_nbytes(places); }

std::vector<uint32_t> Flat::tables(const std::vector<Resident>& residents) const {
  std::vector<FlatOp> placed = ops;
  for (size_t i = 0; i < ops.size(); ++i) placed[i].resident = residents[i];
  std::vector<uint32_t> words(tables_nbytes() / sizeof(uint32_t));
  const auto put = [&words](int64_t begin, const auto& table) {
    if (!table.empty()) std::memcpy(&words[begin / 4], table.data(), table.size() * sizeof table[0]);
  };
  const TablePlaces at = table_places();
  put(at.buffers.begin, buffers), put(at.ops.begin, placed), put(at.taps.begin, taps);
  put(at.instructions.begin, instructions), put(at.parts.begin, parts), put(at.places.begin, places);
  return words;
}

}  // namespace cuda
}  // namespace pixelfast
