// One thread's walk of a chunk of images through all steps of a program.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/runtime.h"

namespace pixelfast {

// Images of one position that follow each other in a block of rows.
struct Segment {
  int32_t y, x;
  int32_t image, n;
};

// What a thread needs besides the program. Kept from run to run.
struct Workspace {
  Workspace(const Kernels& kernels, int levels) : table(kernels, levels) {}

  AlignedFloats arena;    // one image after another
  AlignedFloats product;  // [kBlockRows][padded channels]
  AlignedFloats slots;
  AlignedFloats scores;                      // of attention: [positions]
  std::vector<const float*> inputs, leaves;  // [taps or leaves][kBlockRows]
  std::vector<float*> product_rows, outputs;
  LevelTable table;
};

// Where logits gave no distribution.
struct Failure {
  Flaw flaw = Flaw::none;
  int64_t image = 0;
  int32_t y = 0, x = 0, colour = 0;
};

class Walker {
 public:
  Walker(const Engine& engine, const Request& request, Workspace& workspace, int64_t first_image, int images);

  // Walks until the end, until `stop`, or until logits are flawed; adds `images` to `done` after each step.
  Failure walk(const std::atomic<bool>& stop, std::atomic<int64_t>& done);

  int64_t multiply_adds() const { return multiply_adds_; }

 private:
  struct Base {
    float* start;
    int64_t image_stride;
  };

  bool run_launch(const Launch& launch, const std::atomic<bool>& stop);  // false: stopped before its end
  void run_block(int32_t op);
  void run_product(const OpRecord& op, const PackedOp& packed);
  void run_expression(const OpRecord& op, const PackedOp& packed);
  void run_input(const OpRecord& op);
  void run_head(const OpRecord& op);
  void run_attention(const OpRecord& op);

  // Pointers to one channel of a buffer for the rows of the block; to zeros outside the grid.
  void gather(const Buffer& buffer, int channel, int stride_y, int stride_x, int dy, int dx,
              const float** rows);
  void gather_outputs(const OpRecord& op);
  int64_t pixel(const Segment& s, int i, int colour) const;  // its index in images, log_prob and given

  const Engine& engine_;
  const Program& program_;
  const Request& request_;
  Workspace& work_;
  int64_t first_image_;
  int images_;
  Base bases_[3];  // by Space
  int rows_ = 0;   // of the block
  int n_segments_ = 0;
  Segment segments_[kBlockRows];
  int64_t multiply_adds_ = 0;
  Failure failure_;
};

}  // namespace pixelfast
