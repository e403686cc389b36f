#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

#include "cuda/current.h"
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

constexpr int kThreads = 256;

constexpr int kCluster = 8;  // blocks of a cluster on every device that has them

// One block of a processor suffices: what counts is how long a launch takes, and blocks have weights.
__global__ void __launch_bounds__(kThreads, 1) walk_kernel(const Walk walk) { Walker(walk).run(); }

cudaLaunchAttribute in_clusters(int blocks) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = blocks;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  return attribute;
}

// Where blocks wait for each other through memory all must run at the same time, which makes it cooperative.
void launch(Walk& walk, cudaStream_t stream) {
  const dim3 grid(walk.teams * walk.team_blocks), block(walk.threads);
  const size_t shared = walk.shared_words * sizeof(uint32_t);
  void* arguments[] = {&walk};
  if (walk.barrier == Barrier::memory) {
    check(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(walk_kernel), grid, block, arguments, shared,
                                      stream),
          "the launch of the sampler");
    return;
  }
  cudaLaunchAttribute attribute = in_clusters(walk.team_blocks);
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared, config.stream = stream;
  config.attrs = &attribute, config.numAttrs = walk.barrier == Barrier::cluster ? 1 : 0;
  check(cudaLaunchKernelExC(&config, reinterpret_cast<void*>(walk_kernel), arguments),
        "the launch of the sampler");
}

int blocks_at_once(int index, size_t shared_nbytes) {
  int each = 0, processors = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, walk_kernel, kThreads, shared_nbytes),
        "the occupancy of the sampler");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index), "cudaDeviceGetAttribute");
  return each * processors;
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
  cudaFuncAttributes code;
  check(cudaFuncGetAttributes(&code, walk_kernel), "cudaFuncGetAttributes");
  const size_t most = std::min(p.sharedMemPerBlockOptin, simt::kMostWords * sizeof(uint32_t));
  check(
      cudaFuncSetAttribute(walk_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most)),
      "the shared memory of the sampler");
  DeviceInfo info;
  info.name = std::string(p.name) + ", sm_" + std::to_string(p.major) + std::to_string(p.minor);
  info.index = index, info.threads = kThreads, info.blocks = blocks_at_once(index, 0);
  info.cluster = p.major >= 9 && code.ptxVersion >= 90 ? kCluster : 1;
  info.shared_nbytes = most, info.matrices = p.major >= 8 && code.ptxVersion >= 80;
  info.free_nbytes = free_nbytes(index);
  return info;
}

int teams_at_once(int index, int blocks, Barrier barrier, size_t shared_nbytes) {
  const Current current(index);
  if (barrier != Barrier::cluster) return blocks_at_once(index, shared_nbytes) / blocks;
  int clusters = 0;
  cudaLaunchAttribute attribute = in_clusters(blocks);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks), config.blockDim = dim3(kThreads), config.dynamicSmemBytes = shared_nbytes;
  config.attrs = &attribute, config.numAttrs = 1;
  check(cudaOccupancyMaxActiveClusters(&clusters, walk_kernel, &config), "the occupancy of clusters");
  return clusters;
}

size_t free_nbytes(int index) {
  const Current current(index);
  size_t found = 0, total = 0;
  check(cudaMemGetInfo(&found, &total), "cudaMemGetInfo");
  return found;
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
  check(cudaStreamSynchronize(nullptr), "a copy to the device");  // other streams do not wait for this one
}
void Memory::download(void* target, size_t nbytes) const {
  const Current current(device_);
  check(cudaMemcpy(target, start_, nbytes, cudaMemcpyDeviceToHost), "a copy from the device");
}
void Memory::clear() {
  const Current current(device_);
  check(cudaMemset(start_, 0, nbytes_), "cudaMemset");
  check(cudaStreamSynchronize(nullptr), "cudaMemset");
}

void run_walk(int device, Walk walk, int64_t given_stream,
              const std::function<void(unsigned long long)>& tick) {
  const Current current(device);
  Flags* flags = nullptr;
  check(cudaHostAlloc(reinterpret_cast<void**>(&flags), sizeof *flags, cudaHostAllocMapped), "cudaHostAlloc");
  volatile Flags* seen = flags;
  seen->done = seen->stop = 0;
  std::exception_ptr error;
  bool running = false;
  cudaEvent_t ended = nullptr;
  cudaStream_t own = nullptr, stream = reinterpret_cast<cudaStream_t>(given_stream);
  try {
    void* mapped = nullptr;
    check(cudaHostGetDevicePointer(&mapped, flags, 0), "cudaHostGetDevicePointer");
    walk.done = &static_cast<Flags*>(mapped)->done;
    walk.stop = &static_cast<Flags*>(mapped)->stop;
    if (given_stream < 0) {
      check(cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking), "cudaStreamCreate");
      stream = own;
    }
    check(cudaEventCreateWithFlags(&ended, cudaEventDisableTiming), "cudaEventCreate");
    launch(walk, stream);
    running = true;
    check(cudaEventRecord(ended, stream), "cudaEventRecord");
    auto last = std::chrono::steady_clock::now();
    for (;;) {
      const cudaError_t status = cudaEventQuery(ended);  // others may go on with the stream
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
    running = false;
    if (!error) tick(seen->done);
  } catch (...) {
    if (!error) error = std::current_exception();
  }
  if (running) {  // with memory that is about to be freed
    seen->stop = 1;
    cudaStreamSynchronize(stream);
  }
  if (ended != nullptr) cudaEventDestroy(ended);
  if (own != nullptr) cudaStreamDestroy(own);
  cudaFreeHost(flags);
  if (error) std::rethrow_exception(error);
}

}  // namespace cuda
}  // namespace pixelfast
