#include <cmath>
#include <memory>

#include "cpu/threads.h"
#include "cuda/conv_kernels.h"
#include "cuda/conv_tensor.h"
#include "cuda/conv_tensor_grad.h"
#include "cuda/device_emulated.h"

namespace pixelfast {
namespace cuda {

namespace {

using simt::Half;

// A kernel whose blocks have some shared memory each.
template <class Memory, class Body>
void emulate(int64_t blocks, int threads, const Body& body) {
  const std::unique_ptr<Memory[]> memory(new Memory[blocks]);
  if (blocks > 0) simt::emulate(static_cast<int>(blocks), threads, [&] { body(memory[simt::block()]); });
}
struct None {};

// One on tensor cores, with so many words for each block.
template <class Body>
void emulate_tiles(int64_t blocks, int words, const Body& body) {
  if (blocks > 0) simt::emulate(static_cast<int>(blocks), kTensorThreads, body, 1, words);
}

template <class T>
void run(const ConvArgs& a) {
  using Memory = ConvMemory<typename SumOf<T>::Type>;
  emulate<Memory>(conv_blocks(a), kConvThreads, [&](Memory& memory) { conv_block<T>(a, memory); });
}

template <Half kHalf>
void run(const ConvArgs& a) {
  if (!a.tensor_cores) return run<Number<kHalf>>(a);
  emulate<None>(pack_blocks(a), kConvThreads, [&](None&) { pack_block(a); });
  emulate_tiles(conv_blocks(a), kConvWords,
                [&] { a.at_once ? tensor_conv_block<kHalf, true>(a) : tensor_conv_block<kHalf, false>(a); });
}

template <class T, class Parts>
void sum(const WeightGradArgs& a) {
  emulate<None>(weight_sum_blocks(a), kConvThreads, [&](None&) { weight_grad_sum<T, Parts>(a); });
}

template <class T>
void run(const WeightGradArgs& a) {
  using Memory = ConvMemory<typename SumOf<T>::Type>;
  emulate<Memory>(weight_grad_blocks(a), kConvThreads,
                  [&](Memory& memory) { weight_grad_block<T>(a, memory); });
  sum<T, ChainParts>(a);
}

template <Half kHalf>
void run(const WeightGradArgs& a) {
  if (!a.tensor_cores) return run<Number<kHalf>>(a);
  emulate_tiles(weight_grad_blocks(a), stage_start(a, kStages), [&] {
    a.at_once ? tensor_weight_grad_block<kHalf, true>(a) : tensor_weight_grad_block<kHalf, false>(a);
  });
  sum<Number<kHalf>, TileParts>(a);
}

template <class Args>
void run_as(const Args& a) {
  const FloatMode mode;
  switch (a.type) {
    case Type::float32:
      return run<float>(a);
    case Type::float64:
      return run<double>(a);
    case Type::float16:
      return run<Half::float16>(a);
    case Type::bfloat16:
      return run<Half::bfloat16>(a);
  }
}

}  // namespace

ConvDevice conv_device(int) { return {emulated.capability, 2, 228 << 10}; }

void masked_conv(const ConvArgs& args, int, uint64_t) { run_as(args); }
void masked_conv_weight_grad(const WeightGradArgs& args, int, uint64_t) { run_as(args); }

}  // namespace cuda
}  // namespace pixelfast
