// A Program: what crosses from Python into a runtime. Flat int32 words, and one table of float32 data.
//
//   words = header | buffers | ops | launches
//
//   header    kHeaderWords words, in the order of enum Header
//   buffer    space, offset, height, width, channels, rows, columns, row_stride, col_stride
//   op        opcode, n_words (of the whole record), then
//     input        colour, out_buffer, out_channel, out_channels, table     table: data[levels][out_channels]
//     conv, map    out_buffer, out_channel, out_channels, stride_y, stride_x, product_channels, weight, bias,
//                  start_buffer, start_channel, n_taps, n_instructions, taps, instructions
//       tap          buffer, channel, channels, dy, dx
//       instruction  fn, a, b, c, d     its result is register i, i its own index; registers a, b by arity
//     attend       out_buffer, out_channel, heads, key_channels, value_channels, query_buffer, query_channel,
//                  key_buffer, key_channel, value_buffer, value_channel, bias, bias_heads, n_runs,
//                  first[queries + 1], n_runs pairs: start, end
//     categorical  colour, buffer, channel                                  levels channels: logits
//     bernoulli    colour, buffer, channel                                  one channel: the logit of level 1
//   launch    op, n_runs, then a run each: y, x, n, dy, dx                   positions (y + i*dy, x + i*dx),
//   i < n step      kStepMark, 0                                                   ends a step
//
// Element (y, x, c) of a buffer lies at offset + (y % rows)*row_stride + (x % columns)*col_stride + c of its
// space:
//   arena       scratch, one per image (arena_floats each)
//   data        the Program's own table, shared by all images
//   condition   what the caller passes, one block per image (condition_floats each)
// Reads outside [0, height) x [0, width) yield zeros. An op writes only inside. The grid of an op is that of
// its output buffer (of the image, for heads).
//
// conv at output (y, x), product channel j, fp32, one chain of fused multiply-adds in this order:
//   acc = bias[j]  (0 if bias < 0), or start[y, x, start_channel + j] (if start_buffer >= 0)
//   for each tap, in the order listed, for i in 0..channels-1, k counting on through all taps:
//     acc = fma(in[stride_y*y + dy, stride_x*x + dx, channel + i], weight[k*product_channels + j], acc)
// Taps outside the grid take part, with zeros. Without instructions the product is the output.
// The expression runs per output channel; `product` reads product channel a + j for output channel j, `load`
// and `splat` read at (y + dy, x + dx): strides are those of the taps. `store` keeps a
// result in a buffer of the same grid. The last instruction is the output.
//
// attend at output x, for each head, over the positions k of runs first[x] to first[x + 1], ascending:
//   score[k] = dot(query[x], key[k]) (+ bias[head][x][k]), weight[k] = exp(score[k] - the largest score),
//   out[j] = (one chain of fma(weight[k], value[k][j], .) from 0 on) / total(weight); 0 where there is no
//   run. dot and total are sixteen interleaved partial sums, added pairwise, the far half to the near one.
//   Its buffers have one row; no two keys share a column, nor do values. The runs of a query do not overlap.
//
// Positions of one launch run in any order: none reads what another of them writes. At its own position an
// op may load exactly the channels that it writes (in place); its taps and its start may not read them.
//
// A head at (y, x): where the pixel is given its level is scored, elsewhere it is drawn (distributions.h).
// Images are int32 (N, colours, height, width), as are their float32 log-probabilities.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace pixelfast {

constexpr int32_t kMagic = 0x31465850;  // "PXF1"
constexpr int32_t kVersion = 5;
constexpr int32_t kStepMark = -1;
constexpr int kBufferWords = 9;
constexpr int kTapWords = 5;
constexpr int kInstructionWords = 5;
constexpr int kRunWords = 5;

enum Header : int {
  kHMagic,
  kHVersion,
  kHWords,
  kHColours,
  kHHeight,
  kHWidth,
  kHLevels,
  kHArenaFloats,
  kHConditionFloats,
  kHBuffers,
  kHOps,
  kHSteps,
  kHLaunchWords,
  kHeaderWords,
};

enum class Space : int32_t { arena, data, condition };

enum class Op : int32_t {
#define PIXELFAST_OP(name) name,
#include "core/ops.def"
#undef PIXELFAST_OP
  count
};

enum class Fn : int32_t {
#define PIXELFAST_FN(name, arity) name,
#include "core/ops.def"
#undef PIXELFAST_FN
  count
};

// Of grids, channels, offsets in positions, taps and instructions, so that sums and products stay small.
constexpr int64_t kMaxSide = 1 << 20;
constexpr int64_t kMaxStride = 1 << 10;
constexpr int64_t kMaxLevels = 1 << 16;

struct Buffer {
  Space space;
  int64_t offset;
  int32_t height, width, channels, rows, columns;
  int64_t row_stride, col_stride;
};

struct Tap {
  int32_t buffer, channel, channels, dy, dx;
};

struct Instruction {
  Fn fn;
  int32_t a, b, c, d;
};

// The first of some channels: of attention, where heads * channels lie; of a product, what it begins with.
struct Place {
  int32_t buffer, channel;
};

struct Attention {
  int32_t heads, key_channels, value_channels;
  Place query, key, value;
  int32_t bias, bias_heads;    // no bias where bias_heads is 0
  std::vector<int32_t> first;  // [queries + 1]
  std::vector<int32_t> runs;   // pairs: start, end
};

struct OpRecord {
  Op op;
  int32_t colour;                     // of input and heads
  int32_t buffer, channel, channels;  // that heads read and all others write
  int32_t table;                      // of input
  int32_t stride_y, stride_x, product_channels, weight, bias;
  Place start = {-1, 0};  // of products; no buffer: they begin with the bias
  int64_t depth;          // length of the sum: channels of all taps
  std::vector<Tap> taps;
  std::vector<Instruction> instructions;
  Attention attention;
};

struct Run {
  int32_t y, x, n, dy, dx;
};

struct Launch {
  int32_t op, first_run, n_runs;
  int64_t positions;
};

// A program that has been checked: every index lies in its range, every element in its space.
struct Program {
  int32_t colours, height, width, levels;
  int64_t arena_floats, condition_floats;
  std::vector<Buffer> buffers;
  std::vector<OpRecord> ops;
  std::vector<Run> runs;
  std::vector<Launch> launches;
  std::vector<int32_t> step_ends;  // index of the first launch after each step
};

inline bool same_positions(const Program& program, const Launch& a, const Launch& b) {
  return a.n_runs == b.n_runs &&
         std::memcmp(&program.runs[a.first_run], &program.runs[b.first_run], a.n_runs * sizeof(Run)) == 0;
}

// Throws std::invalid_argument, naming the part and the word, where anything is out of range.
Program decode_program(const int32_t* words, int64_t n_words, int64_t n_data);

// What runs read of the data besides the weights. From then on the program's places are in that, but those
// of weights.
std::vector<float> keep_data(Program& program, const float* data);

}  // namespace pixelfast
