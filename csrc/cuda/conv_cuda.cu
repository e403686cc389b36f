#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/conv_kernels.h"

namespace pixelfast {
namespace cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kConvThreads) conv_kernel(const ConvArgs a) {
  __shared__ ConvMemory<typename SumOf<T>::Type> memory;
  conv_block<T>(a, memory);
}

template <class T>
__global__ void __launch_bounds__(kConvThreads) weight_grad_kernel(const WeightGradArgs a) {
  __shared__ ConvMemory<typename SumOf<T>::Type> memory;
  weight_grad_block<T>(a, memory);
}

template <class T>
__global__ void __launch_bounds__(kConvThreads) weight_sum_kernel(const WeightGradArgs a) {
  weight_grad_sum<T>(a);
}

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that it is not found again
  throw std::runtime_error(std::string("[masked_conv] the launch failed: ") + cudaGetErrorString(status));
}

template <class T>
void launch(const ConvArgs& a, cudaStream_t stream) {
  const int blocks = conv_blocks(a);
  if (blocks > 0) conv_kernel<T><<<blocks, kConvThreads, 0, stream>>>(a);
}

template <class T>
void launch(const WeightGradArgs& a, cudaStream_t stream) {
  weight_grad_kernel<T><<<weight_grad_blocks(a), kConvThreads, 0, stream>>>(a);
  weight_sum_kernel<T><<<weight_sum_blocks(a), kConvThreads, 0, stream>>>(a);
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
      launch<__half>(a, s);
      break;
    case Type::bfloat16:
      launch<__nv_bfloat16>(a, s);
      break;
  }
  const cudaError_t status = cudaGetLastError();
  cudaSetDevice(before);
  check(status);
}

}  // namespace

void masked_conv(const ConvArgs& args, int device, uint64_t stream) { launch_as(args, device, stream); }
void masked_conv_weight_grad(const WeightGradArgs& args, int device, uint64_t stream) {
  launch_as(args, device, stream);
}

}  // namespace cuda
}  // namespace pixelfast
