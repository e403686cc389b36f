// What this machine reaches, as measured, and what its caches hold.
#pragma once

#include <cstdint>
#include <functional>

#include "cpu/kernels.h"

namespace pixelfast {

// Multiply-adds per second that `threads` threads reach from registers: the best of many short rounds each.
// What `tick` throws, which is called meanwhile, stops it and is thrown from here.
double measure_peak(const Kernels& kernels, int threads, double seconds, const std::function<void()>& tick);

// Bytes per second that a product of one row reads of `nbytes` of weights, again and again: the best of many
// rounds. At least kLeastBandwidth bytes.
constexpr int64_t kLeastBandwidth = 1 << 15;
double measure_bandwidth(const Kernels& kernels, int64_t nbytes, double seconds);

// Bytes of the second level cache, as the system tells.
int64_t second_level();

// Multiply-adds that take as long as fetching one weight: from the second level cache, and from what lies
// beyond, which is measured once.
constexpr double kNearFetch = 2.5;
double far_fetch();

}  // namespace pixelfast
