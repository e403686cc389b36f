#include <cmath>
#include <stdexcept>
#include <vector>

#include "cpu/threads.h"
#include "cuda/conv_kernels.h"

namespace pixelfast {
namespace cuda {
namespace {

template <class T>
void run(const ConvArgs& a) {
  const int blocks = conv_blocks(a);
  std::vector<ConvMemory<typename SumOf<T>::Type>> memory(blocks);
  if (blocks > 0) simt::emulate(blocks, kConvThreads, [&] { conv_block<T>(a, memory[simt::block()]); });
}

template <class T>
void run(const WeightGradArgs& a) {
  const int blocks = weight_grad_blocks(a);
  std::vector<ConvMemory<typename SumOf<T>::Type>> memory(blocks);
  simt::emulate(blocks, kConvThreads, [&] { weight_grad_block<T>(a, memory[simt::block()]); });
  simt::emulate(weight_sum_blocks(a), kConvThreads, [&] { weight_grad_sum<T>(a); });
}

template <class Args>
void run_as(const Args& a) {
  const FloatMode mode;
  if (a.type == Type::float32) return run<float>(a);
  if (a.type == Type::float64) return run<double>(a);
  throw std::invalid_argument("[masked_conv] the emulation has float32 and float64");
}

}  // namespace

void masked_conv(const ConvArgs& args, int, uint64_t) { run_as(args); }
void masked_conv_weight_grad(const WeightGradArgs& args, int, uint64_t) { run_as(args); }

}  // namespace cuda
}  // namespace pixelfast
