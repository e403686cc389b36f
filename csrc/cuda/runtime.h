// Runs a Program on a device: its parts copied there once, then images in chunks, each walked by a team of
// blocks.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "core/program.h"
#include "core/request.h"
#include "cuda/device.h"
#include "cuda/resident.h"

namespace pixelfast {
namespace cuda {

// On the device, if it says so, are images, log_prob, given and conditions, and what made them is in
// `stream`.
struct DeviceRequest : Request {
  bool on_device = false;
  int64_t stream = -1;  // -1: one of the run's own
  int64_t resident_nbytes =
      -1;           // of a block's shared memory for tables and weights, at most; -1: as is sensible
  int spread = -1;  // which order of launches (core/waits.h); -1: as is sensible
};

// A way to share a run: `teams` of `blocks` blocks, each with `chunk` images at a time, and weights of so
// many bytes, of all, in the shared memory of each team. `spread`: the order of launches.
struct Estimate {
  int teams, blocks, chunk;
  bool spread;
  const char* barrier;
  int64_t resident_nbytes, weights_nbytes;
  double cycles;
  size_t nbytes;
};

class Engine {
 public:
  // Throws std::invalid_argument where the program is not valid, or there is no such device.
  // `bf16`: products are of numbers rounded to bf16, summed in float32.
  Engine(const int32_t* words, int64_t n_words, const float* data, int64_t n_data, int device, bool bf16);

  // Returns the multiply-adds executed. `progress` is called now and then with the fraction done; what it
  // throws stops the run and is thrown from here. Throws std::invalid_argument where logits give no
  // distribution, or an image does not fit into the memory that is free.
  int64_t run(const DeviceRequest& request, const std::function<void(double)>& progress);

  // Those that a run chooses between, by the least cycles.
  std::vector<Estimate> estimates(const DeviceRequest& request) const;

  // Of the device's memory, as long as this lives: weights, other data and launches.
  size_t held_nbytes() const;

  const Program& program() const { return program_; }
  const std::vector<FlatLaunch>& launches(bool spread) const {
    return spread && !flat_.spread.empty() ? flat_.spread : flat_.launches;
  }
  const DeviceInfo& device() const { return device_; }

 private:
  // How a run is shared: `teams` of `blocks` blocks, each with `chunk` images at a time.
  struct Crew {
    int teams, blocks, chunk;
    Residency kept;
    bool spread;  // which order of launches
  };
  // None where the device runs no such team.
  std::optional<Crew> crew_of(const DeviceRequest& request, int blocks, size_t resident_nbytes) const;
  std::vector<Crew> crews(const DeviceRequest& request) const;
  Crew choose_crew(const DeviceRequest& request) const;
  Crew fitting(Crew crew, size_t room) const;  // smaller, if need be
  size_t nbytes_of(const Crew& crew) const;
  Walk walk_of(const DeviceRequest& request, const Crew& crew) const;
  void run_part(const DeviceRequest& request, const Crew& crew, int64_t first,
                const std::function<void(double)>& progress);
  Barrier barrier_of(int blocks) const;
  bool matrices() const { return device_.matrices && !flat_.halves.empty(); }
  double cost(const Crew& crew, int64_t n) const;  // in cycles

  Program program_;
  DeviceInfo device_;
  Memory data_;  // in the bf16 mode without the weights, which are in `halves_`
  Flat flat_;
  std::vector<int32_t> urgent_;  // ops by how near their weights should be
  int64_t weights_nbytes_ = 0;
  Memory attention_, positions_, launches_, spread_, halves_;
};

}  // namespace cuda
}  // namespace pixelfast
