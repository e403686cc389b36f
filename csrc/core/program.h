// A Program: what crosses from Python into a runtime. Flat int32 words, and one table of float32 data.
//
//   words = header | buffers | ops | launches
//
//   header    kHeaderWords words, in the order of enum Header
//   buffer    space, offset, height, width, channels, rows, row_stride, col_stride
//   op        opcode, n_words (of the whole record), then
//     input        colour, out_buffer, out_channel, out_channels, table     table: data[levels][out_channels]
//     conv, map    out_buffer, out_channel, out_channels, stride_y, stride_x, product_channels, weight, bias,
//                  n_taps, n_instructions, taps, instructions
//       tap          buffer, channel, channels, dy, dx
//       instruction  fn, a, b, c, d     its result is register i, i its own index; registers a, b by arity
//     categorical  colour, buffer, channel                                  levels channels: logits
//     bernoulli    colour, buffer, channel                                  one channel: the logit of level 1
//   launch    op, n_runs, then a run each: y, x, n, dy, dx                   positions (y + i*dy, x + i*dx), i < n
//   step      kStepMark, 0                                                   ends a step
//
// Element (y, x, c) of a buffer lies at offset + (y % rows)*row_stride + x*col_stride + c of its space:
//   arena       scratch, one per image (arena_floats each)
//   data        the Program's own table, shared by all images
//   condition   what the caller passes, one block per image (condition_floats each)
// Reads outside [0, height) x [0, width) yield zeros. An op writes only inside. The grid of an op is that of its
// output buffer (of the image, for heads).
//
// conv at output (y, x), product channel j, fp32, one chain of fused multiply-adds in this order:
//   acc = bias[j]  (0 if bias < 0)
//   for each tap, in the order listed, for i in 0..channels-1, k counting on through all taps:
//     acc = fma(in[stride_y*y + dy, stride_x*x + dx, channel + i], weight[k*product_channels + j], acc)
// Taps outside the grid take part, with zeros. Without instructions the product is the output.
// The expression runs per output channel; `product` reads product channel a + j for output channel j.
//
// A head at (y, x): where the pixel is given its level is scored, elsewhere it is drawn (distributions.h).
// Images are int32 (N, colours, height, width), as are their float32 log-probabilities.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pixelfast {

constexpr int32_t kMagic = 0x31465850;  // "PXF1"
constexpr int32_t kVersion = 1;
constexpr int32_t kStepMark = -1;
constexpr int kBufferWords = 8;
constexpr int kTapWords = 5;
constexpr int kInstructionWords = 5;
constexpr int kRunWords = 5;

enum Header : int {
  kHMagic, kHVersion, kHWords, kHColours, kHHeight, kHWidth, kHLevels,
  kHArenaFloats, kHConditionFloats, kHBuffers, kHOps, kHSteps, kHLaunchWords,
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

}  // namespace pixelfast
