#include "cpu/runtime.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/threads.h"
#include "cpu/walker.h"

namespace pixelfast {
namespace {

std::string message(const Failure& f) {
  return std::string("[sample] the model gave ") + describe(f.flaw) + " at image " + std::to_string(f.image) +
         ", pixel (" + std::to_string(f.y) + ", " + std::to_string(f.x) + "), colour " +
         std::to_string(f.colour);
}

// What the threads of a run share.
struct Shared {
  std::atomic<bool> stop{false};
  std::atomic<int64_t> next_chunk{0};
  std::atomic<int64_t> done{0};  // steps times images
  std::atomic<int64_t> multiply_adds{0};
  std::mutex mutex;
  Failure failure;
};

}  // namespace

// As many images as fill a block of rows, so that weights are read once for many, but no more than the cache
// holds, or than there are weights to be read; and the same number for each thread.
int Engine::choose_chunk(int64_t n, int threads) const {
  const int64_t arena_bytes = std::max<int64_t>(arena_stride_, 1) * static_cast<int64_t>(sizeof(float));
  const int64_t filling = std::max<int64_t>(1, static_cast<int64_t>(kBlockRows / mean_positions_ + 0.5));
  const int64_t fitting = std::max<int64_t>(1, std::max(kArenaBytes, weights_nbytes()) / arena_bytes);
  const int64_t most = std::min(filling, fitting);
  const int64_t rounds = (n + most * threads - 1) / (most * threads);
  return static_cast<int>((n + rounds * threads - 1) / (rounds * threads));
}

std::unique_ptr<Workspace> Engine::borrow(int images) const {
  std::unique_ptr<Workspace> w;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!idle_.empty()) {
      w = std::move(idle_.back());
      idle_.pop_back();
    }
  }
  if (!w) {
    w = std::make_unique<Workspace>(kernels_, program_.levels);
    const int64_t stride = (most_products_ + 15) / 16 * 16;
    w->product = AlignedFloats(stride * kBlockRows);
    w->scores = AlignedFloats((most_keys_ + 15) / 16 * 16);
    w->slots = AlignedFloats(static_cast<int64_t>(most_slots_) * kGroupRows * kChunk);
    w->inputs.resize(std::max<size_t>(most_taps_, 1) * kBlockRows);
    w->leaves.resize(most_leaves_ * kBlockRows);
    w->outputs.resize(kBlockRows);
    for (int r = 0; r < kBlockRows; ++r) w->product_rows.push_back(w->product.get() + r * stride);
  }
  if (w->arena.size() < arena_stride_ * images) {
    w->arena = AlignedFloats();  // first free, then allocate
    w->arena = AlignedFloats(arena_stride_ * images);
  }
  return w;
}

int64_t Engine::run(const Request& request, const std::function<void(double)>& progress) const {
  if (request.n == 0) return 0;
  const int wanted = request.threads > 0 ? request.threads : default_threads();
  const int chunk = static_cast<int>(
      std::min<int64_t>(request.n, request.chunk > 0 ? request.chunk : choose_chunk(request.n, wanted)));
  const int64_t chunks = (request.n + chunk - 1) / chunk;
  const int threads = static_cast<int>(std::min<int64_t>(wanted, chunks));
  Shared shared;
  const auto body = [&](int) {
    std::unique_ptr<Workspace> workspace = borrow(chunk);
    for (;;) {
      const int64_t first = shared.next_chunk.fetch_add(1) * chunk;
      if (first >= request.n || shared.stop.load()) break;
      const int images = static_cast<int>(std::min<int64_t>(chunk, request.n - first));
      Walker walker(*this, request, *workspace, first, images);
      const Failure failure = walker.walk(shared.stop, shared.done);
      shared.multiply_adds.fetch_add(walker.multiply_adds());
      if (failure.flaw != Flaw::none) {
        const std::lock_guard<std::mutex> lock(shared.mutex);
        if (shared.failure.flaw == Flaw::none) shared.failure = failure;
        shared.stop.store(true);
      }
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(workspace));
  };
  const double total = static_cast<double>(request.n) * std::max<size_t>(program_.step_ends.size(), 1);
  run_threads(threads, body, [&] { progress(static_cast<double>(shared.done.load()) / total); }, shared.stop);
  if (shared.failure.flaw != Flaw::none) throw std::invalid_argument(message(shared.failure));
  return shared.multiply_adds.load();
}

}  // namespace pixelfast
