#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cuda/conv_kernels.h"
#include "cuda/conv_tensor.h"
#include "cuda/conv_tensor_grad.h"
#include "cuda/current.h"

namespace pixelfast {
namespace cuda {
namespace {

using simt::Half;

template <class T>
__global__ void __launch_bounds__(kConvThreads) conv_kernel(const __grid_constant__ ConvArgs a) {
  __shared__ ConvMemory<typename SumOf<T>::Type> memory;
  conv_block<T>(a, memory);
}

template <class T>
__global__ void __launch_bounds__(kConvThreads) weight_grad_kernel(const __grid_constant__ WeightGradArgs a) {
  __shared__ ConvMemory<typename SumOf<T>::Type> memory;
  weight_grad_block<T>(a, memory);
}

template <class T, class Parts>
__global__ void __launch_bounds__(kConvThreads) weight_sum_kernel(const __grid_constant__ WeightGradArgs a) {
  weight_grad_sum<T, Parts>(a);
}

__global__ void __launch_bounds__(kConvThreads) pack_kernel(const __grid_constant__ ConvArgs a) {
  pack_block(a);
}

template <Half kHalf, bool kAtOnce>
__global__ void __launch_bounds__(kTensorThreads, 2) tensor_conv_kernel(const __grid_constant__ ConvArgs a) {
  tensor_conv_block<kHalf, kAtOnce>(a);
}

template <Half kHalf, bool kAtOnce>
__global__ void __launch_bounds__(kTensorThreads, 2)
    tensor_weight_grad_kernel(const __grid_constant__ WeightGradArgs a) {
  tensor_weight_grad_block<kHalf, kAtOnce>(a);
}

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that it is not found again
  throw std::runtime_error(std::string("[masked_conv] CUDA failed: ") + cudaGetErrorString(status));
}

// More shared memory than a kernel has by itself is to be asked for.
template <class Args>
void launch_tiles(void (*kernel)(Args), int64_t blocks, int words, const Args& a, cudaStream_t stream) {
  const int shared_nbytes = words * static_cast<int>(sizeof(uint32_t));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_nbytes));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared));
  kernel<<<static_cast<unsigned>(blocks), kTensorThreads, shared_nbytes, stream>>>(a);
}

template <class T>
void launch(const ConvArgs& a, cudaStream_t stream) {
  conv_kernel<T><<<static_cast<unsigned>(conv_blocks(a)), kConvThreads, 0, stream>>>(a);
}

template <Half kHalf>
void launch(const ConvArgs& a, cudaStream_t stream) {
  if (!a.tensor_cores) return launch<Number<kHalf>>(a, stream);
  if (a.steps > 0) pack_kernel<<<static_cast<unsigned>(pack_blocks(a)), kConvThreads, 0, stream>>>(a);
  launch_tiles(a.at_once ? tensor_conv_kernel<kHalf, true> : tensor_conv_kernel<kHalf, false>, conv_blocks(a),
               kConvWords, a, stream);
}

template <class T>
void launch(const WeightGradArgs& a, cudaStream_t stream) {
  weight_grad_kernel<T><<<static_cast<unsigned>(weight_grad_blocks(a)), kConvThreads, 0, stream>>>(a);
  weight_sum_kernel<T, ChainParts>
      <<<static_cast<unsigned>(weight_sum_blocks(a)), kConvThreads, 0, stream>>>(a);
}

template <Half kHalf>
void launch(const WeightGradArgs& a, cudaStream_t stream) {
  if (!a.tensor_cores) return launch<Number<kHalf>>(a, stream);
  launch_tiles(a.at_once ? tensor_weight_grad_kernel<kHalf, true> : tensor_weight_grad_kernel<kHalf, false>,
               weight_grad_blocks(a), stage_start(a, kStages), a, stream);
  weight_sum_kernel<Number<kHalf>, TileParts>
      <<<static_cast<unsigned>(weight_sum_blocks(a)), kConvThreads, 0, stream>>>(a);
}

template <class Args>
void launch_as(const Args& a, int device, uint64_t stream) {
  const Current current(device);
  const auto s = reinterpret_cast<cudaStream_t>(stream);
  switch (a.type) {
    case Type::float32:
      launch<float>(a, s);
      break;
    case Type::float64:
      launch<double>(a, s);
      break;
    case Type::float16:
      launch<Half::float16>(a, s);
      break;
    case Type::bfloat16:
      launch<Half::bfloat16>(a, s);
      break;
  }
  check(cudaGetLastError());
}

ConvDevice find_device(int device) {
  int count = 0, major = 0, minor = 0;
  check(cudaGetDeviceCount(&count));
  if (device < 0 || device >= count) {
    throw std::invalid_argument("[masked_conv] there is no device " + std::to_string(device));
  }
  const Current current(device);
  ConvDevice found{};
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  check(cudaDeviceGetAttribute(&found.processors, cudaDevAttrMultiProcessorCount, device));
  check(cudaDeviceGetAttribute(&found.shared_nbytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  cudaFuncAttributes code;
  check(cudaFuncGetAttributes(&code, tensor_conv_kernel<Half::bfloat16, true>));
  found.capability = std::min(10 * major + minor, code.ptxVersion);  // new GPUs compile code of old ones
  return found;
}

}  // namespace

ConvDevice conv_device(int device) {
  static std::mutex mutex;
  static std::map<int, ConvDevice> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  return found != known.end() ? found->second : known.emplace(device, find_device(device)).first->second;
}

void masked_conv(const ConvArgs& args, int device, uint64_t stream) { launch_as(args, device, stream); }
void masked_conv_weight_grad(const WeightGradArgs& args, int device, uint64_t stream) {
  launch_as(args, device, stream);
}

}  // namespace cuda
}  // namespace pixelfast
