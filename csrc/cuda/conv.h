// Masked convolutions for training: their sums as products of matrices over the live taps, which tiles of
// shared memory feed. pixelfast/masked_conv.py says what is computed.
#pragma once

#include <cstdint>

namespace pixelfast {
namespace cuda {

constexpr int kMostTaps = 128;     // live ones of a kernel
constexpr int kConvThreads = 256;  // of a block: 16 times 16, each with 4 times 4 sums
constexpr int kSide = 64;          // of a block's tile of sums
constexpr int kDeep = 16;          // terms of a sum between two barriers

enum class Type : int32_t { float32, float64, float16, bfloat16 };

// Elements from one to the next along an axis; 0 broadcasts.
struct Strides {
  int64_t n, c, y, x;
};

struct ConvArgs {
  Type type;
  int32_t batch, inputs, outputs, height, width;  // of the result
  int32_t in_height, in_width;
  int32_t n_taps;
  int16_t tap_y[kMostTaps], tap_x[kMostTaps];  // where a tap reads, from the position of the result
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
};

// The gradients of weight and bias: sums over all positions, in `splits` parts that are then added in order.
struct WeightGradArgs {
  Type type;
  int32_t batch, inputs, outputs, height, width;  // of the gradient of the result
  int32_t in_height, in_width;
  int32_t n_taps, splits;
  int16_t tap_y[kMostTaps], tap_x[kMostTaps];
  const void* grad;
  const void* in;
  const uint8_t* mask;  // or null
  void* weight;         // zero where a tap is dead
  void* bias;           // or null
  double* parts64;      // [splits][outputs][taps * inputs + 1], of whichever type sums have
  float* parts32;
  Strides grad_strides, in_strides, weight_strides, mask_strides;
  int64_t tap_weight[kMostTaps], tap_mask[kMostTaps];
};

// On a stream of a device; they return at once.
void masked_conv(const ConvArgs& args, int device, uint64_t stream);
void masked_conv_weight_grad(const WeightGradArgs& args, int device, uint64_t stream);

}  // namespace cuda
}  // namespace pixelfast
