// What the emulated device has, for tests to change before programs are loaded, and what it did.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pixelfast {
namespace cuda {

struct Emulated {
  size_t free_nbytes = size_t{1} << 32;
  size_t shared_nbytes = 4096;  // little, so that not all weights fit
  int capability = 90;
  int blocks = 3;                       // that run at the same time,
  size_t all_shared_nbytes = SIZE_MAX;  // and what they have of shared memory together
  unsigned long long steps_done = 0;    // by the last run, of all chunks
};
extern Emulated emulated;

}  // namespace cuda
}  // namespace pixelfast
