// Threads that work on the same images, and wait for each other between ops.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace pixelfast {

// A barrier for `size` threads that spins for some microseconds, and then lets others have the processor: at
// once, where another of the team was last seen on the same one.
class Team {
 public:
  explicit Team(int size) : size_(size), processors_(size) {}
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Returns, once all have arrived, whether any of them asked to stop: the same answer to all. Each has a
  // rank of its own.
  bool wait(int rank, bool stop);

  int64_t first_image = 0;  // of the chunk at work; set by the first thread, read by the others after a wait

 private:
  bool is_crowded(int rank) const;  // whether another was last seen where this one is

  const int size_;
  std::vector<std::atomic<int>> processors_;  // by rank, plus one
  bool stopped_ = false;
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace pixelfast
