// AVX2 with FMA.
#include <immintrin.h>

#include "core/distributions.h"
#include "core/math.h"
#include "core/philox.h"
#include "cpu/kernels.h"

namespace pixelfast {
namespace {
#include "cpu/vec_avx2.h"

constexpr int kAccumulators = 12;  // registers for sums

#include "cpu/kernels.inl"
}  // namespace

const Kernels kAvx2Kernels = {
    "avx2",      Lanes::kLanes, gather, shift, product, expression,   attend, weights,
    frequencies, levels,        draw,   unary, binary,  multiply_add, peak,
};

}  // namespace pixelfast
