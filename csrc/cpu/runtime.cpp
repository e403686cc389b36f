#include "cpu/runtime.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <stdexcept>
#include <string>

#include "cpu/threads.h"
#include "cpu/walker.h"

namespace pixelfast {
namespace {

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

std::unique_ptr<Workspace> Engine::borrow() const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!idle_.empty()) {
      std::unique_ptr<Workspace> w = std::move(idle_.back());
      idle_.pop_back();
      return w;
    }
  }
  auto w = std::make_unique<Workspace>(kernels_, program_.levels);
  w->product = AlignedFloats(most_products_ * kBlockRows);
  w->rounded = AlignedFloats(most_rounded_ * kBlockRows);
  w->scores = AlignedFloats(most_scores_);
  w->slots = AlignedFloats(static_cast<int64_t>(most_slots_) * kBlockRows * kernels_.lanes);
  w->rows.resize((most_reads_ + 1) * kBlockRows);
  for (int r = 0; r < kBlockRows; ++r) w->product_rows.push_back(w->product.get() + r * kernels_.lanes);
  return w;
}

void Engine::give_back(std::unique_ptr<Workspace> workspace) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  idle_.push_back(std::move(workspace));
}

int64_t Engine::working_nbytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  int64_t floats = static_cast<int64_t>(data_.size()) + zeros_.size();
  int64_t pointers = 0;
  for (const std::unique_ptr<Workspace>& w : idle_) {
    for (const AlignedFloats* a : {&w->arena, &w->product, &w->rounded, &w->slots, &w->scores})
      floats += a->size();
    pointers += static_cast<int64_t>(w->rows.size() + w->product_rows.size());
  }
  for (const Places& p : places_) pointers += static_cast<int64_t>(p.rows.size() + p.columns.size());
  return floats * static_cast<int64_t>(sizeof(float)) + pointers * static_cast<int64_t>(sizeof(void*));
}

int64_t Engine::images_at_once(const CpuRequest& request) const {
  const Crew crew = choose_crew(request);
  return static_cast<int64_t>(crew.teams) * crew.chunk;
}

int64_t Engine::run(const CpuRequest& request, const std::function<void(double)>& progress) const {
  if (request.n == 0) return 0;
  const Crew crew = choose_crew(request);
  if (request.profile != nullptr) request.profile->ops.resize(ops_.size());
  Shared shared;
  struct Gang {  // a team, and where its images are
    explicit Gang(int size) : team(size) {}
    Team team;
    float* arena = nullptr;
    int images = 0;
  };
  std::deque<Gang> gangs;
  for (int i = 0; i < crew.teams; ++i) gangs.emplace_back(crew.size);
  const auto start = std::chrono::steady_clock::now();
  const uint64_t start_ticks = ticks();
  const auto body = [&](int index) {
    Gang& gang = gangs[index / crew.size];
    const int rank = index % crew.size;
    std::unique_ptr<Workspace> workspace;
    std::exception_ptr error;  // held until the others of the team know: they wait for this thread
    for (;;) {
      try {
        if (workspace == nullptr) workspace = borrow();
        if (rank == 0) {
          gang.team.first_image = shared.next_chunk.fetch_add(1) * crew.chunk;
          gang.images =
              static_cast<int>(std::clamp<int64_t>(request.n - gang.team.first_image, 0, crew.chunk));
          gang.arena = workspace->arena_for(arena_stride_ * crew.chunk);
        }
      } catch (...) {
        error = std::current_exception();
      }
      if (gang.team.wait(rank, error != nullptr || shared.stop.load()) || gang.images == 0) break;
      Walker walker(*this, request, *workspace, gang.arena, gang.team, rank, gang.images);
      const Failure failure = walker.walk(shared.stop, shared.done);
      shared.multiply_adds.fetch_add(walker.multiply_adds());
      const std::lock_guard<std::mutex> lock(shared.mutex);
      if (failure.flaw != Flaw::none) {
        if (shared.failure.flaw == Flaw::none) shared.failure = failure;
        shared.stop.store(true);
      }
      if (request.profile != nullptr) request.profile->add(walker.profile());
    }
    if (workspace != nullptr) give_back(std::move(workspace));
    if (error != nullptr) std::rethrow_exception(error);
  };
  const double total = static_cast<double>(request.n) * std::max<size_t>(program_.step_ends.size(), 1);
  run_threads(
      crew.teams * crew.size, body, [&] { progress(static_cast<double>(shared.done.load()) / total); },
      shared.stop);
  if (request.profile != nullptr) {
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    request.profile->seconds = seconds.count();
    request.profile->threads = crew.teams * crew.size;
    request.profile->seconds_per_tick = seconds.count() / static_cast<double>(ticks() - start_ticks);
  }
  const Failure& f = shared.failure;
  if (f.flaw != Flaw::none) throw std::invalid_argument(flaw_message(f.flaw, f.image, f.y, f.x, f.colour));
  return shared.multiply_adds.load();
}

}  // namespace pixelfast
