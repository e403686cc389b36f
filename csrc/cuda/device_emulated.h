// What the emulated device has, for tests to change before programs are loaded.
#pragma once

#include <cstddef>

namespace pixelfast {
namespace cuda {

struct Emulated {
  size_t free_nbytes = size_t{1} << 32;
  size_t shared_nbytes = 4096;  // little, so that not all weights fit
  int capability = 90;
};
extern Emulated emulated;

}  // namespace cuda
}  // namespace pixelfast
