// One thread's walk of a chunk of images through all steps of a program, alone or as one of a team.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/runtime.h"
#include "cpu/team.h"

namespace pixelfast {

// What a thread needs besides the program. Kept from run to run.
struct Workspace {
  Workspace(const Kernels& kernels, int levels) : table(kernels, levels) {}

  float* arena_for(int64_t floats) {
    if (arena.size() < floats) {
      arena = AlignedFloats();  // first free, then allocate
      arena = AlignedFloats(floats);
    }
    return arena.get();
  }

  AlignedFloats arena;    // for a team whose first thread this is: one image after another
  AlignedFloats product;  // [vectors][rows][lanes]
  AlignedFloats rounded;  // inputs of a product as pairs of bf16
  AlignedFloats slots;
  AlignedFloats scores;            // of attention: [heads][positions], and totals
  std::vector<const float*> rows;  // [PackedOp::reads][kBlockRows]
  std::vector<float*> product_rows;
  std::vector<After> after;
  LevelTable table;
};

// Where logits gave no distribution.
struct Failure {
  Flaw flaw = Flaw::none;
  int64_t image = 0;
  int32_t y = 0, x = 0, colour = 0;
};

// A thread's share of a launch: rows, and parts of the output channels: vectors, or heads of attention.
struct Share {
  int64_t first_row, end_row;
  int first, end;
};

class Walker {
 public:
  // `arena` is the team's.
  Walker(const Engine& engine, const CpuRequest& request, Workspace& workspace, float* arena, Team& team,
         int rank, int images);
  ~Walker();
  Walker(const Walker&) = delete;
  Walker& operator=(const Walker&) = delete;

  // Walks until the end, until `stop`, or until some thread of the team finds flawed logits; the first thread
  // adds `images` to `done` after each step.
  Failure walk(const std::atomic<bool>& stop, std::atomic<int64_t>& done);

  int64_t multiply_adds() const { return multiply_adds_; }
  const Profile& profile() const { return profile_; }

 private:
  void look_ahead(int32_t launch);
  bool wait(bool stop);  // for the team; whether all stop
  bool by_rows(const Launch& launch) const;
  Share share_of(const Launch& launch, bool by_rows) const;
  bool run_launch(const Launch& launch, const Share& share,
                  const std::atomic<bool>& stop);  // false: stopped before its end
  void run_block(int32_t op, const Share& share);
  void run_tasks(const OpRecord& op, const PackedOp& packed, int first, int end);
  void run_product(const OpRecord& op, const PackedOp& packed, const Task& task, int first, int end);
  void gather(int32_t op);
  void round_inputs(const OpRecord& op, const PackedOp& packed);
  void run_input(int32_t index);
  void run_head(int32_t index);
  void run_attention(const OpRecord& op, int first_head, int end_head);
  // Of the block, what starts, leaves and outputs are of an op.
  const float** starts(const OpRecord& op) const { return work_.rows.data() + op.taps.size() * kBlockRows; }
  const float** leaves(const OpRecord& op) const {
    return starts(op) + (op.start.buffer >= 0 ? kBlockRows : 0);
  }
  float* const* outputs(const PackedOp& packed) const {
    return const_cast<float* const*>(work_.rows.data() + (packed.reads.size() - 1) * kBlockRows);
  }
  int64_t pixel(int segment, int i, int colour) const;  // its index in images, log_prob and given
  uint64_t now() const { return request_.profile != nullptr ? ticks() : 0; }

  const Engine& engine_;
  const Program& program_;
  const CpuRequest& request_;
  Workspace& work_;
  Team& team_;
  int rank_;
  int64_t first_image_;
  int images_;
  Base bases_[3];  // by Space
  int rows_ = 0;   // of the block
  Segments segments_{};
  int32_t gathered_ = -1;             // the op whose pointers of the block are at hand
  const Launch* in_block_ = nullptr;  // the launch of which these rows are the share:
  Share share_{};
  const Panel* ahead_ = nullptr;  // the weights to be fetched now
  int32_t ahead_at_ = -1;         // the launch that they are for
  int64_t multiply_adds_ = 0;
  uint64_t product_ticks_ = 0;  // of the block
  Profile profile_;
  Failure failure_;
};

}  // namespace pixelfast
