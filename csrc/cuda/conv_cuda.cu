#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/conv_kernels.h"
#include "cuda/conv_tensor.h"
#include "cuda/conv_tensor_grad.h"

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

extern __shared__ uint4 shared_memory[];

template <Half kHalf, bool kAtOnce>
__global__ void __launch_bounds__(kTensorThreads, 2) tensor_conv_kernel(const __grid_constant__ ConvArgs a) {
  tensor_conv_block<kHalf, kAtOnce>(a, *reinterpret_cast<ConvTiles*>(shared_memory));
}

template <Half kHalf, bool kAtOnce>
__global__ void __launch_bounds__(kTensorThreads, 2)
    tensor_weight_grad_kernel(const __grid_constant__ WeightGradArgs a) {
  tensor_weight_grad_block<kHalf, kAtOnce>(a, *reinterpret_cast<GradTiles*>(shared_memory));
}

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that it is not found again
  throw std::runtime_error(std::string("[masked_conv] CUDA failed: ") + cudaGetErrorString(status));
}

// More shared memory than a kernel has by itself is to be asked for.
template <class Args>
void launch_tiles(void (*kernel)(Args), int64_t blocks, size_t shared_nbytes, const Args& a,
                  cudaStream_t stream) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_nbytes)));
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
               sizeof(ConvTiles), a, stream);
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
               weight_grad_blocks(a), stage_start(a, kStages) * sizeof(uint32_t), a, stream);
  weight_sum_kernel<Number<kHalf>, TileParts>
      <<<static_cast<unsigned>(weight_sum_blocks(a)), kConvThreads, 0, stream>>>(a);
}

template <class Args>
void launch_as(const Args& a, int device, uint64_t stream) {
  int before = 0;
  check(cudaGetDevice(&before));
  check(cudaSetDevice(device));
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
  const cudaError_t status = cudaGetLastError();
  cudaSetDevice(before);
  check(status);
}

std::vector<ConvDevice> find_devices() {
  int count = 0;
  check(cudaGetDeviceCount(&count));
  std::vector<ConvDevice> found(count);
  for (int i = 0; i < count; ++i) {
    int major = 0, minor = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i));
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, i));
    check(cudaDeviceGetAttribute(&found[i].processors, cudaDevAttrMultiProcessorCount, i));
    found[i].capability = 10 * major + minor;
  }
  return found;
}

}  // namespace

ConvDevice conv_device(int device) {
  static const std::vector<ConvDevice> devices = find_devices();
  if (device < 0 || device >= static_cast<int>(devices.size())) {
    throw std::invalid_argument("[masked_conv] there is no device " + std::to_string(device));
  }
  return devices[device];
}

void masked_conv(const ConvArgs& args, int device, uint64_t stream) { launch_as(args, device, stream); }
void masked_conv_weight_grad(const WeightGradArgs& args, int device, uint64_t stream) {
  launch_as(args, device, stream);
}

}  // namespace cuda
}  // namespace pixelfast
