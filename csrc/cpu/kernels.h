// What an instruction set offers: one table of functions, and the shapes that weights are packed in.
#pragma once

#include <cstdint>

#include "core/program.h"

namespace pixelfast {

constexpr int kBlockRows = 48;  // rows (an image at a position) that pass through an op together
constexpr int kVectors = 4;     // vectors of outputs that a product computes at once
constexpr int kNarrowRows = 4;  // rows that may be lanes, where outputs are so few that most lanes were idle
constexpr int kLine = 16;       // floats to a cache line

// Images of positions, as rows of a block: `n[s]` of them at (y[s], x[s]), from `image[s]` on.
struct Segments {
  int count;
  int32_t y[kBlockRows], x[kBlockRows], image[kBlockRows], n[kBlockRows];
};

// Where a block of rows finds some channels of a buffer: at (y * stride_y + dy, x * stride_x + dx).
struct Read {
  const int64_t *rows, *columns;  // where row y and column x begin: the sum is the place of (y, x)
  int32_t height, width, stride_y, stride_x, dy, dx;
  int space, channel;
};

struct Base {
  float* start;
  int64_t image_stride;
};

struct GatherArgs {
  const Segments* segments;
  int n_rows;
  const Read* reads;
  int n_reads;
  const Base* bases;       // by space
  const float* zeros;      // outside the grid
  const float** pointers;  // [n_reads][kBlockRows], and room for as many as a vector has
};

// Pointers that `gather` found go on by some floats, but for those to zeros.
struct ShiftArgs {
  const int64_t* shifts;  // [n_reads]
  int n_rows, n_reads;
  const float* zeros;
  const float** pointers;  // [n_reads][kBlockRows]
};

// What happens to a product while it is in registers: `add` adds rows, `store` copies it to them, `relu`.
struct After {
  Fn fn;
  const float* const* rows;  // [kBlockRows]
};

// The product of up to kBlockRows rows with up to kVectors vectors of packed weights. In the bf16 mode inputs
// and weights are not floats but pairs of bf16, channels come in pairs, and all taps are one.
struct ProductArgs {
  const float* const* inputs;   // [n_taps][kBlockRows]
  const int32_t* tap_channels;  // [n_taps]
  int n_taps;
  int64_t input_stride;  // in the bf16 mode floats from a row to the next
  int rows;
  int vectors;
  const float* weights;   // [depth][weight_stride], of which vectors * lanes are used
  int64_t weight_stride;  // floats
  const float* bias;      // [vectors * lanes]
  // What sums begin with, in place of the bias, if not null: rows, and where each vector is in them.
  const float* const* start;
  int64_t start_column[kVectors];
  int start_lanes[kVectors];
  // What the caller will read next, up to an end: fetched meanwhile into the second level cache.
  const float *ahead, *ahead_end;
  float* const* outputs;  // [rows]
  int64_t column;         // of the outputs
  int columns;            // that the outputs have room for
  int64_t vector_stride;  // floats from a vector of outputs to the next
  int64_t row_stride;     // and from a row, or 0 where rows lie anywhere
  const After* after;     // in the rows of these `column` is the first, too
  int n_after;
};

// One instruction of an expression, made ready to run. Its value is a part of the product, or in a slot, or
// the output.
struct Step {
  Fn fn;
  int a, b;     // operands: indices of earlier steps, or -1 for `row`, if there is one, or `scalar`
  int row;      // the index in `leaves` of an operand that is read where it lies, else -1
  int leaf;     // its index in `leaves` where it reads, or stores to, a row of a buffer or of data
  int part;     // its index among the parts of the product where it is one, else -1
  int slot;     // -1: it has none
  bool output;  // its result goes to the outputs, not to a slot
  float scalar;
};

// Rows and the vectors of a task are computed as one array: parts, slots: [vectors][rows][lanes].
struct ExpressionArgs {
  const Step* steps;
  int n_steps;
  int rows, channel, channels;  // the outputs `channel` to `channel + channels`
  const float* const* leaves;   // [n_leaves][kBlockRows]
  const float* product;         // [parts][vectors][rows][lanes]
  float* const* outputs;        // [rows]
  float* slots;                 // [n_slots][kBlockRows * lanes]
};

// Attention of one position, for the heads from first_head up to end_head.
struct AttendArgs {
  const float* query;
  const float *keys, *values;  // at position 0
  int64_t key_stride, value_stride;
  const int32_t* runs;  // pairs: start, end
  int n_runs;
  const float* bias;  // of head 0, or null
  int64_t bias_stride;
  int first_head, end_head, key_channels, value_channels;
  float* scores;         // [heads][score_stride], then a float for each head
  int64_t score_stride;  // all positions, rounded up to 16
  float* out;
};

struct Weights {
  int64_t total;    // sum of the weights of allowed levels
  int32_t allowed;  // how many levels those are
  int32_t argmax;   // the first of the largest logits
  float largest;
  bool nan;
};

struct LevelArgs {
  const float* const* logits;  // [rows]
  int levels;
  float inverse_temperature;
  const uint32_t* bits;  // [rows]
  int32_t* table;        // [levels][lanes]
  int32_t* level;        // [rows], as frequency
  uint32_t* frequency;
};

struct Kernels {
  const char* name;
  int lanes;
  void (*gather)(const GatherArgs&);
  void (*shift)(const ShiftArgs&);
  void (*product)(const ProductArgs&);
  void (*expression)(const ExpressionArgs&);
  int64_t (*attend)(const AttendArgs&);  // returns the positions attended to
  // The two loops over levels of core/distributions.h.
  Weights (*weights)(const float* logits, int n, float inverse_temperature, int32_t* weight);
  int64_t (*frequencies)(const int32_t* weight, int n, double scale, int32_t* frequency, int64_t* block_sums);
  // draw_levels for n <= kBlockRows rows, and draw_bits.
  bool (*levels)(const LevelArgs&, int n);
  void (*draw)(uint64_t seed, const uint64_t* image, const uint64_t* counter, int n, uint32_t* bits);
  void (*unary)(Fn fn, const float* x, float* y, int64_t n);
  void (*binary)(Fn fn, const float* a, const float* b, float* y, int64_t n);
  void (*fma)(const float* a, const float* b, const float* c, float* y, int64_t n);
  // Runs `n` rounds of independent multiply-adds in registers; returns how many that were.
  int64_t (*peak)(int64_t n, float* sink);
};

// What the bf16 mode has in place of Kernels::product.
struct Bf16Kernels {
  const char* name;
  int deep;  // pairs of which the depth of a product is a multiple: it is filled up with zeros
  void (*product)(const ProductArgs&);
  // n floats to pairs, the last filled up with zero. Writes up to a multiple of eight pairs.
  void (*round)(const float* x, int n, float* pairs);
  void (*leave)();  // after products, or null
};

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;  // these are defined where PIXELFAST_X86 is
extern const Kernels kAvx512Kernels;
extern const Bf16Kernels kAvx512Bf16Kernels;
extern const Bf16Kernels kAmxKernels;

}  // namespace pixelfast
