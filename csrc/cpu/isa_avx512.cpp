// AVX-512 F, BW, DQ, VL.
#include <immintrin.h>

#include "core/distributions.h"
#include "core/math.h"
#include "core/philox.h"
#include "cpu/kernels.h"

namespace pixelfast {
namespace {
#include "cpu/vec_avx512.h"

constexpr int kAccumulators = 24;  // registers for sums

#include "cpu/kernels.inl"
}  // namespace

const Kernels kAvx512Kernels = {
    "avx512",    Lanes::kLanes, gather, shift, product, expression,   attend, weights,
    frequencies, levels,        draw,   unary, binary,  multiply_add, peak,
};

}  // namespace pixelfast
