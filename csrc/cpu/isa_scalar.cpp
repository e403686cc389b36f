// Plain C++: what every machine can run.
#include "core/distributions.h"
#include "core/math.h"
#include "core/philox.h"
#include "cpu/kernels.h"

namespace pixelfast {
namespace {
#include "core/vec_scalar.h"

constexpr int kAccumulators = 24;  // registers for sums

#include "cpu/kernels.inl"
}  // namespace

const Kernels kScalarKernels = {
    "scalar",    Lanes::kLanes, gather, shift, product, expression,   attend, weights,
    frequencies, levels,        draw,   unary, binary,  multiply_add, peak,
};

}  // namespace pixelfast
