// Runs a Program on the processor: weights packed once, then images in chunks, each walked through all steps.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "core/program.h"
#include "core/request.h"
#include "core/waits.h"
#include "cpu/heads.h"
#include "cpu/kernels.h"
#include "cpu/profile.h"

namespace pixelfast {

constexpr int64_t kArenaBytes = int64_t{4}
                                << 20;  // of a team's chunk, about: what caches hold beside the weights
constexpr int64_t kCacheBytes = int64_t{20} << 20;  // of the last level, all in all

// Zeroed floats on a 64-byte boundary.
class AlignedFloats {
 public:
  explicit AlignedFloats(int64_t n = 0);
  float* get() const { return aligned_; }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(void* p) const;
  };
  std::unique_ptr<void, Free> memory_;
  float* aligned_ = nullptr;
  int64_t size_ = 0;
};

// Parts of an op's product, each of as many vectors as its task has: weights [depth][parts * vectors *
// lanes], and the bias likewise, as offsets into the packed weights.
struct Panel {
  int64_t weights, bias;
  int first_part, parts;
};

// Some output channels of an op, from the product to the last instruction.
struct Task {
  int channel, channels, vectors;
  int first_panel, n_panels;
};

// An op, made ready to run. Its product has a part for each of the offsets at which the expression reads it.
struct PackedOp {
  std::vector<int32_t> tap_channels;  // in the bf16 mode one tap, of pairs of them
  int64_t depth = 0;                  // the sum of those
  std::vector<int> parts;             // first product channels
  std::vector<Panel> panels;
  std::vector<Task> tasks;
  int vectors = 0;          // of outputs, in all tasks
  std::vector<Step> steps;  // none where `after` is all that follows a product
  std::vector<Step> after;
  std::vector<Instruction> leaves;  // those that read a row elsewhere: what `Step::leaf` counts
  std::vector<Read> reads;          // taps, what sums begin with, leaves, and where results go
  // The op, launched before this on the same positions, whose reads are those of this but for so many floats.
  int32_t alike = -1;
  std::vector<int64_t> shifts;
  int n_slots = 0;
  int64_t weights_nbytes = 0;
};

struct CpuRequest : Request {
  int threads = 0;             // 0: all cores
  Profile* profile = nullptr;  // added to, if there is one
};

// Where row y and column x of a buffer begin: the sum is the place of (y, x).
struct Places {
  std::vector<int64_t> rows, columns;
};

// The launches of an op, positions in all of them, and the mean bytes of weights read from one to the next.
struct Load {
  int64_t launches = 0, positions = 0, since_nbytes = 0;
  double head_work = 0;  // of attention: multiply-adds of a head at a mean position
};

struct Workspace;

// How threads share a run: `teams` of them walk chunks of images, `size` threads each.
struct Crew {
  int teams, size, chunk;
};

class Engine {
 public:
  // `bf16`: for that mode, else null. Throws std::invalid_argument where the program is not valid.
  Engine(const int32_t* words, int64_t n_words, const float* data, int64_t n_data, const Kernels& kernels,
         const Bf16Kernels* bf16);
  ~Engine();

  // Returns the multiply-adds executed. `progress` is called every 50 ms with the fraction done; what it
  // throws stops the run and is thrown from here. Throws std::invalid_argument where logits give no
  // distribution. Several threads may call it at a time.
  int64_t run(const CpuRequest& request, const std::function<void(double)>& progress) const;

  const Program& program() const { return program_; }
  const Kernels& kernels() const { return kernels_; }
  const std::vector<PackedOp>& ops() const { return ops_; }
  // Of what is kept besides the weights: data, and memory for the runs so far.
  int64_t working_nbytes() const;
  // Images whose arenas a run holds at the same time.
  int64_t images_at_once(const CpuRequest& request) const;
  int64_t weights_nbytes() const { return packed_.size() * static_cast<int64_t>(sizeof(float)); }

 private:
  friend class Walker;

  void pack(size_t op, const float* data);
  void find_reads(const OpRecord& op, PackedOp& packed) const;
  void find_shifts(int32_t before, PackedOp& packed) const;
  // In crew.cpp.
  Crew choose_crew(const CpuRequest& request) const;
  int choose_chunk(int64_t n, int teams) const;
  int parts_of(int32_t op) const;  // shares that its output channels may be cut into
  bool shares_rows(int32_t op, int64_t rows, int size) const;
  // An estimate of a thread's time for a launch, in multiply-adds; `sharing`: threads that share the weights.
  double cost(int32_t op, double rows, double parts, int sharing) const;
  std::unique_ptr<Workspace> borrow() const;
  void give_back(std::unique_ptr<Workspace> workspace) const;

  const Kernels& kernels_;
  const Bf16Kernels* bf16_;
  Program program_;
  std::vector<float> data_;     // what runs read besides the weights
  std::vector<Places> places_;  // of each buffer
  std::vector<PackedOp> ops_;
  AlignedFloats packed_;
  AlignedFloats zeros_;  // what taps outside the grid read
  int64_t arena_stride_ = 0;
  int64_t typical_positions_ = 1;  // of a launch: the median
  std::vector<Load> loads_;        // of each op
  bool attends_ = false;
  size_t most_reads_ = 1;
  int64_t most_rounded_ = 0;  // floats that a row of an op's inputs take as pairs of bf16
  int64_t most_products_ = 0;
  int most_slots_ = 0;
  int64_t most_scores_ = 0;  // of attention, and a total for each head

  mutable std::once_flag waits_found_;
  mutable Waits waits_;  // for teams

  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> idle_;  // kept: fresh memory costs page faults
};

}  // namespace pixelfast
