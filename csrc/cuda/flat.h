// A Program laid out for a device: flat arrays of plain structs, and what a run of it needs.
#pragma once

#include <cstdint>
#include <vector>

#include "core/portable.h"
#include "core/program.h"

namespace pixelfast {
namespace cuda {

constexpr int kElements = 4;       // of a tile, that a thread computes together
constexpr int kOwnRegisters = 16;  // of an expression that a thread keeps by itself
constexpr int kMatrixRows = 16;    // of a tile that a warp multiplies by tensor cores,
constexpr int kMatrixDepth = 16;   // and how much of its sum at once
constexpr int kGroup = 8;          // its channels, whose weights lie side by side in the bf16 mode
constexpr int kPollSteps = 32;     // from one look at what the host wants to the next, or
constexpr int64_t kPollRows = 1 << 16;

// Row y and column x of a buffer begin at rows[y] + columns[x], places in `Flat::places` from those on.
struct FlatBuffer {
  int64_t offset, col_stride;
  int32_t space, height, width, rows, columns;
};

// Where weights of an op are in the shared memory of the blocks of a team: `width` channels of each part in
// each block, from `block` on, and on from the first block after the last. Place -1: they are not.
struct Resident {
  int32_t place, width, block;
};

struct FlatOp {
  int32_t op, colour, buffer, channel, channels, table;
  int32_t stride_y, stride_x, product_channels;
  int32_t bias, start_buffer, start_channel;
  int32_t first_tap, n_taps, first_instruction, n_instructions, first_part, n_parts;
  int32_t columns;  // channels for which each part has weights
  int32_t steps;    // words of such a column
  int32_t heads, key_channels, value_channels;
  int32_t query_buffer, query_channel, key_buffer, key_channel, value_buffer, value_channel;
  int32_t attention_bias, bias_heads, first_runs, runs;  // the last two: places in `attention`
  int64_t weight;
  Resident resident;
};

// A product of an expression: its first channel, and the instruction that yields it. Its column c are the
// weights of channel `channel + c` of the product.
struct Part {
  int32_t channel, instruction;
};

struct Position {
  int32_t y, x;
};

// Words of a tap's share of a column.
PIXELFAST_BOTH constexpr int32_t words_of(int32_t channels, bool bf16) {
  return bf16 ? (channels + kMatrixDepth - 1) / kMatrixDepth * (kMatrixDepth / 2) : channels;
}

// At the positions from (y, x) on by (dy, dx), or at those of a list.
struct FlatLaunch {
  int32_t op, positions;
  int32_t first_position;  // of the list; -1: there is none
  int32_t y, x, dy, dx;
  int32_t waits, arrives;  // for the other threads of the team, before it, and after it for the next wait
  int32_t ends_step;
};

// Where one of the tables begins, in bytes.
template <class T>
struct Table {
  int64_t begin;
};
struct TablePlaces {
  Table<FlatBuffer> buffers;
  Table<FlatOp> ops;
  Table<Tap> taps;
  Table<Instruction> instructions;
  Table<Part> parts;
  Table<int32_t> places;
};

// All of it, on the device.
struct FlatProgram {
  const uint32_t* tables;
  TablePlaces at;
  int64_t table_words;
  const int32_t* attention;  // first[queries + 1] and runs, op by op
  const Position* positions;
  const FlatLaunch* launches;
  const float* data;
  const uint32_t* halves;  // in the bf16 mode the weights of all parts, else null
  int32_t n_ops, n_launches, colours, height, width, levels;
  int64_t arena_floats, condition_floats;
};

// As many blocks as are in a team share the images of a chunk. How they wait for each other.
enum class Barrier : int32_t { block, cluster, memory };

struct TeamState {
  uint32_t arrived;  // blocks, at all barriers in memory so far, in 32 bits
  uint32_t stop[2];  // written in turn
};

struct Walk {
  FlatProgram program;
  int32_t* images;       // (n, colours, height, width), in and out
  float* log_prob;       // likewise, out
  const uint8_t* given;  // likewise, or null: then `all_given` holds for every pixel
  const float* conditions;
  int32_t all_given;
  int64_t n;
  uint64_t seed, first_index;
  float inverse_temperature;
  int32_t top_k;
  double top_p;
  int32_t chunk, teams, team_blocks, threads;  // threads of a block
  Barrier barrier;
  int32_t matrices;      // whether tensor cores multiply, of bf16
  int32_t shared_words;  // of a block
  int32_t tables_near;   // whether they are among them, at their start
  float* arena;          // [teams][chunk][arena_floats]
  float* registers;      // of long expressions: [threads of the grid][most_instructions][kElements]
  int32_t most_instructions;
  float* scores;    // of attention: [warps of the grid][keys]
  int32_t* levels;  // of heads: [warps of the grid][3][levels]: weights or frequencies, ranks, what stays
  int64_t n_scores;
  TeamState* states;         // [teams]
  unsigned long long* flaw;  // the first sub-pixel without a distribution, times four, plus which Flaw
  unsigned long long* done;  // steps of chunks, which the host may watch
  const uint32_t* stop;      // set by the host
};

// The arrays of a program, on the host.
//
// In fp32 `FlatOp::weight` is a place in the data, where word `step` of a column of a part is at
// step * product_channels + channel + column. In the bf16 mode, with `data`, it is one in `halves`: of parts,
// of groups of kGroup columns, of steps, of the columns of a group. A word is two consecutive numbers of the
// sum there, and each tap has a multiple of kMatrixDepth of them, zeros at its end.
struct Flat {
  Flat(const Program& program, const float* data);

  // The tables of `TablePlaces` one after another, with what is resident of the weights.
  std::vector<uint32_t> tables(const std::vector<Resident>& residents) const;
  TablePlaces table_places() const;
  size_t tables_nbytes() const;

  std::vector<FlatBuffer> buffers;
  std::vector<FlatOp> ops;
  std::vector<Tap> taps;
  std::vector<Instruction> instructions;
  std::vector<Part> parts;
  std::vector<int32_t> attention;
  std::vector<uint32_t> halves;
  std::vector<int32_t> places;
  std::vector<Position> positions;
  std::vector<FlatLaunch> launches, spread;  // in both orders of core/waits.h; none `spread`, if they are one
  int most_instructions = 0;                 // of those with more than kOwnRegisters
  int64_t most_keys = 0;
  int64_t most_positions = 1;  // of a launch
  int64_t multiply_adds = 0;   // of an image
};

}  // namespace cuda
}  // namespace pixelfast
