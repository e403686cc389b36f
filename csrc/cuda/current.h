// The device of this thread, for the length of a scope.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace pixelfast {
namespace cuda {

// Nothing is set where the device is current already: setting one makes a context on it.
class Current {
 public:
  explicit Current(int device) {
    must(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ == device) return;
    must(cudaSetDevice(device), "cudaSetDevice");
    is_other_ = true;
  }
  ~Current() {
    if (is_other_) cudaSetDevice(before_);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  static void must(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // so that it is not found again
    throw std::runtime_error(std::string("[cuda] ") + what + " failed: " + cudaGetErrorString(status));
  }

  int before_ = 0;
  bool is_other_ = false;
};

}  // namespace cuda
}  // namespace pixelfast
