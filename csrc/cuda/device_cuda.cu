#include <cuda_runtime.h>

#include <chrono>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

#include "cuda/device.h"
#include "cuda/walk.h"

namespace pixelfast {
namespace cuda {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that it is not found again
  throw std::runtime_error(std::string("[cuda] ") + what + " failed: " + cudaGetErrorString(status));
}

// The device of this thread, as it was, at the end of a scope.
class Current {
 public:
  explicit Current(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~Current() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) walk_kernel(const Walk walk) {
  __shared__ BlockMemory memory;
  Walker(walk, memory).run();
}

}  // namespace

const char* backend_name() { return "cuda"; }

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

DeviceInfo device_info(int index) {
  const Current current(index);
  cudaDeviceProp p;
  check(cudaGetDeviceProperties(&p, index), "cudaGetDeviceProperties");
  int each = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, walk_kernel, kThreads, 0),
        "the occupancy of the sampler");
  size_t free_nbytes = 0, total = 0;
  check(cudaMemGetInfo(&free_nbytes, &total), "cudaMemGetInfo");
  const std::string name = std::string(p.name) + ", sm_" + std::to_string(p.major) + std::to_string(p.minor);
  return {name, index, kThreads, each * p.multiProcessorCount, free_nbytes};
}

Memory::Memory(int device, size_t nbytes) : nbytes_(nbytes), device_(device) {
  const Current current(device);
  const cudaError_t status = cudaMalloc(&start_, nbytes > 0 ? nbytes : 1);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw std::bad_alloc();
  }
  check(status, "cudaMalloc");
}
Memory::~Memory() {
  if (start_ != nullptr) cudaFree(start_);
}
void Memory::upload(const void* source, size_t nbytes) {
  const Current current(device_);
  check(cudaMemcpy(start_, source, nbytes, cudaMemcpyHostToDevice), "a copy to the device");
}
void Memory::download(void* target, size_t nbytes) const {
  const Current current(device_);
  check(cudaMemcpy(target, start_, nbytes, cudaMemcpyDeviceToHost), "a copy from the device");
}
void Memory::clear() {
  const Current current(device_);
  check(cudaMemset(start_, 0, nbytes_), "cudaMemset");
}

void run_walk(int device, Walk walk, const std::function<void(int)>& tick) {
  const Current current(device);
  Flags* flags = nullptr;
  check(cudaHostAlloc(reinterpret_cast<void**>(&flags), sizeof *flags, cudaHostAllocMapped), "cudaHostAlloc");
  volatile Flags* seen = flags;
  seen->done = seen->stop = 0;
  std::exception_ptr error;
  cudaStream_t stream = nullptr;
  try {
    void* mapped = nullptr;
    check(cudaHostGetDevicePointer(&mapped, flags, 0), "cudaHostGetDevicePointer");
    walk.done = &static_cast<Flags*>(mapped)->done;
    walk.stop = &static_cast<Flags*>(mapped)->stop;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    void* arguments[] = {&walk};
    // Cooperative: its blocks wait for each other, so all must run at the same time.
    check(
        cudaLaunchCooperativeKernel(reinterpret_cast<void*>(walk_kernel), dim3(walk.teams * walk.team_blocks),
                                    dim3(walk.threads), arguments, 0, stream),
        "the launch of the sampler");
    auto last = std::chrono::steady_clock::now();
    for (;;) {
      const cudaError_t status = cudaStreamQuery(stream);
      if (status != cudaErrorNotReady) {
        check(status, "the sampler");
        break;
      }
      const auto now = std::chrono::steady_clock::now();
      if (now - last > std::chrono::milliseconds(50) && !error) {
        last = now;
        try {
          tick(seen->done);
        } catch (...) {
          error = std::current_exception();
          seen->stop = 1;
        }
      }
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    if (!error) tick(seen->done);
  } catch (...) {
    if (!error) error = std::current_exception();
  }
  if (stream != nullptr) cudaStreamDestroy(stream);
  cudaFreeHost(flags);
  if (error) std::rethrow_exception(error);
}

}  // namespace cuda
}  // namespace pixelfast
