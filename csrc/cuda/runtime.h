// Runs a Program on a device: its parts copied there once, then images in chunks, each walked by a team of
// blocks.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>

#include "core/program.h"
#include "core/request.h"
#include "cuda/device.h"

namespace pixelfast {
namespace cuda {

class Engine {
 public:
  // Throws std::invalid_argument where the program is not valid, or there is no such device.
  Engine(const int32_t* words, int64_t n_words, const float* data, int64_t n_data, int device);

  // Returns the multiply-adds executed. `progress` is called now and then with the fraction done; what it
  // throws stops the run and is thrown from here. Throws std::invalid_argument where logits give no
  // distribution.
  int64_t run(const Request& request, const std::function<void(double)>& progress);

  const Program& program() const { return program_; }
  const DeviceInfo& device() const { return device_; }

 private:
  // How a run is shared: `teams` of `blocks` blocks, each with `chunk` images at a time.
  struct Crew {
    int teams, blocks, chunk;
  };
  Crew crew_of(int64_t n, int chunk, int blocks) const;
  Crew choose_crew(const Request& request) const;
  Walk walk_of(const Request& request) const;
  double cost(const Crew& crew, int64_t n) const;  // in cycles

  Program program_;
  Flat flat_;
  DeviceInfo device_;
  Memory buffers_, ops_, taps_, instructions_, attention_, runs_, launches_, data_;
};

}  // namespace cuda
}  // namespace pixelfast
