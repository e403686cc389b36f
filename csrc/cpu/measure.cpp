#include "cpu/measure.h"

#ifdef __linux__
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/runtime.h"
#include "cpu/threads.h"

namespace pixelfast {

using Clock = std::chrono::steady_clock;

double measure_peak(const Kernels& kernels, int threads, double seconds, const std::function<void()>& tick) {
  std::vector<double> rates(threads);
  std::atomic<bool> stop{false};
  const auto body = [&](int index) {
    alignas(64) float sink[2 + 16] = {0.5f, 0.25f};
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    for (auto start = Clock::now(); start < end && !stop.load();) {
      const int64_t done = kernels.peak(20000, sink);
      const auto now = Clock::now();
      rates[index] = std::max(rates[index], done / std::chrono::duration<double>(now - start).count());
      start = now;
    }
  };
  run_threads(threads, body, tick, stop);
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

double measure_bandwidth(const Kernels& kernels, int64_t nbytes, double seconds) {
  constexpr int kDepth = 128;
  const int64_t width = kVectors * kernels.lanes, each = kDepth * width;
  static_assert(kLeastBandwidth >= kDepth * kVectors * 16 * static_cast<int64_t>(sizeof(float)));
  const int64_t panels = nbytes / static_cast<int64_t>(sizeof(float)) / each;
  const AlignedFloats weights(panels * each), input(kDepth), output(width);
  const float* inputs[kBlockRows] = {input.get()};
  float* outputs[kBlockRows] = {output.get()};
  const int32_t channels = kDepth;
  ProductArgs args{};
  args.inputs = inputs, args.tap_channels = &channels, args.n_taps = 1, args.rows = 1;
  args.vectors = kVectors, args.vector_stride = kernels.lanes, args.weight_stride = width;
  args.bias = output.get(), args.outputs = outputs, args.columns = static_cast<int>(width);
  std::fill_n(weights.get(), panels * each, 0.5f);  // pages of their own
  double best = 0;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  const int64_t rounds = std::max<int64_t>(1, (int64_t{4} << 20) / nbytes);
  for (auto start = Clock::now(); start < end;) {
    for (int64_t r = 0; r < rounds; ++r) {
      for (int64_t p = 0; p < panels; ++p) args.weights = weights.get() + p * each, kernels.product(args);
    }
    const auto now = Clock::now();
    const double bytes = static_cast<double>(rounds * panels * each) * sizeof(float);
    best = std::max(best, bytes / std::chrono::duration<double>(now - start).count());
    start = now;
  }
  return best;
}

int64_t second_level() {
  static const int64_t found = [] {
    int64_t nbytes = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    nbytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return nbytes > 0 ? nbytes : int64_t{1} << 20;
  }();
  return found;
}

double far_fetch() {
  static const double found = [] {
    const Kernels& kernels = *usable_kernels().back();
    const double peak = measure_peak(kernels, 1, 0.01, [] {});
    return std::max(kNearFetch, sizeof(float) * peak / measure_bandwidth(kernels, 4 * second_level(), 0.02));
  }();
  return found;
}

}  // namespace pixelfast
