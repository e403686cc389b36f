// Masked convolutions for training: their sums as products of matrices over the live taps, which tiles of
// shared memory feed. pixelfast/masked_conv.py says what is computed.
//
// There are two paths. float16 and bfloat16 go over tensor cores where there are any (conv_tensor.h), and
// everything else goes a multiply-add at a time (conv_kernels.h). conv_plan.cpp chooses.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/portable.h"

namespace pixelfast {
namespace cuda {

constexpr int kMostTaps = 128;     // live ones of a kernel
constexpr int kMostSide = 32767;   // of an image
constexpr int kConvThreads = 256;  // of a block: 16 times 16, each with 4 times 4 sums
constexpr int kSide = 64;          // of a block's tile of sums
constexpr int kDeep = 16;          // terms of a sum between two barriers

// On tensor cores:
constexpr int kTensorThreads = 128;  // of a block: four warps
constexpr int kTensorRows = 256;     // of a block's tile of sums, a quarter for each warp
constexpr int kTensorColumns = 64;
constexpr int kStep = 32;      // terms of a sum between two barriers
constexpr int kMostSpan = 16;  // columns between the first and the last tap
constexpr int kUnit = 8;       // channels that are read at once
constexpr int kUnitsOfStep = kStep / kUnit;
constexpr int kTapsOfTile = kTensorRows / kStep;  // where rows are taps' input channels
constexpr int kStages = 3;                        // tiles in flight: one is read, while others are copied to
constexpr int kZeroWords = 32;                    // of every bank one, for what is outside of the grid

enum class Type : int32_t { float32, float64, float16, bfloat16 };

// Elements from one to the next along an axis; 0 broadcasts.
struct Strides {
  int64_t n, c, y, x;
};

// What both kinds of launches have. A tap reads (tap_y, tap_x) from the position of the result.
struct ConvShape {
  Type type;
  int32_t batch, inputs, outputs, height, width;  // of the result
  int32_t in_height, in_width;
  int32_t n_taps;
  int16_t tap_y[kMostTaps], tap_x[kMostTaps];
  bool tensor_cores;
  int32_t n_rows;  // of the kernel, that have taps: those of row r are row_taps[r] to row_taps[r + 1]
  int16_t row_taps[kMostTaps + 1];
  int32_t left, span;  // the least tap_x, and how much larger the largest is
  int32_t columns;     // of the grid that tiles walk: of the input or of the result, which has more
};

struct ConvArgs : ConvShape {
  const void* in;
  const void* weight;
  const uint8_t* mask;  // or null
  const void* bias;     // or null, as the next three
  const void* condition;
  const void* residual;
  void* factors;  // of the gate
  void* out;
  Strides in_strides, condition_strides, residual_strides, factor_strides, out_strides;
  Strides weight_strides, mask_strides;                // n: output, c: input, y: tap
  int64_t tap_weight[kMostTaps], tap_mask[kMostTaps];  // offsets of a tap
  int32_t gate;
  // On tensor cores.
  void* packed;   // live weights, in the order in which tiles read them
  bool at_once;   // whether units of `in` can be read at once
  int32_t steps;  // of a sum
};

// The gradients of weight and bias: sums over all positions, in `splits` parts that are then added in order.
struct WeightGradArgs : ConvShape {
  int32_t splits;
  const void* grad;
  const void* in;
  const uint8_t* mask;  // or null
  void* weight;         // zero where a tap is dead
  void* bias;           // or null
  void* parts;          // of whichever type sums have
  int64_t part;         // elements of one
  Strides grad_strides, in_strides, weight_strides, mask_strides;
  int64_t tap_weight[kMostTaps], tap_mask[kMostTaps];
  bool at_once;  // whether units of `in` and of `grad` can be read at once
};

// Words of shared memory of a tensor core's weight gradient, by stages: the gradient, and a strip for each
// row of the kernel that a tile has taps of, as many as it has taps at most. Zeros come first.
constexpr int kGradWords = kStep * kTensorColumns / 2;
PIXELFAST_BOTH inline int strip_words(const ConvShape& a) { return (kStep + a.span) * kStep / 2; }
PIXELFAST_BOTH inline int stage_start(const ConvShape& a, int stage) {
  return kZeroWords + stage * (kGradWords + kTapsOfTile * strip_words(a));
}

// What a device is to these kernels.
struct ConvDevice {
  int capability;  // 90 is 9.0; of the code, where that is older
  int processors;
  int shared_nbytes;  // of a multiprocessor
};

// conv_plan.cpp: how a launch is shared among blocks, and how much memory it needs besides its tensors. They
// fill in what follows from the rest.
size_t plan(ConvArgs& args, const ConvDevice& device);
size_t plan(WeightGradArgs& args, const ConvDevice& device);
int64_t pack_blocks(const ConvArgs& args);
int64_t conv_blocks(const ConvArgs& args);
int64_t weight_grad_blocks(const WeightGradArgs& args);
int64_t weight_sum_blocks(const WeightGradArgs& args);

ConvDevice conv_device(int device);

// On a stream of a device; they return at once.
void masked_conv(const ConvArgs& args, int device, uint64_t stream);
void masked_conv_weight_grad(const WeightGradArgs& args, int device, uint64_t stream);

}  // namespace cuda
}  // namespace pixelfast
