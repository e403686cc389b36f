// The images that a team has in hand, the rows of a launch, and where they read and write. Part of walk.h.
#pragma once

#include "cuda/flat.h"
#include "cuda/simt.h"
#include "cuda/tables.h"

namespace pixelfast {
namespace cuda {
namespace {

// An image at a position.
struct Row {
  int32_t y, x;
  int64_t image;  // of the chunk
};

class Chunk {
 public:
  PIXELFAST_DEVICE Chunk(const Walk& walk, int team)
      : w_(walk), p_(walk.program), tables_(walk), team_(team) {}

  PIXELFAST_DEVICE const Tables& tables() const { return tables_; }

  // Images from `first` on, of the run.
  PIXELFAST_DEVICE void begin(int64_t first) {
    first_ = first, images_ = w_.n - first < w_.chunk ? w_.n - first : w_.chunk;
  }
  PIXELFAST_DEVICE int64_t images() const { return images_; }
  PIXELFAST_DEVICE int64_t image(const Row& r) const { return first_ + r.image; }

  PIXELFAST_DEVICE Row row_of(const FlatLaunch& launch, int64_t row) const {
    const auto k = static_cast<int32_t>(static_cast<uint32_t>(row) / static_cast<uint32_t>(images_));
    const Position at = launch.first_position < 0
                            ? Position{launch.y + k * launch.dy, launch.x + k * launch.dx}
                            : p_.positions[launch.first_position + k];
    return {at.y, at.x, row - k * images_};
  }

  PIXELFAST_DEVICE const float* base(const FlatBuffer& b, int64_t image) const {
    switch (static_cast<Space>(b.space)) {
      case Space::arena:
        return w_.arena + (static_cast<int64_t>(team_) * w_.chunk + image) * p_.arena_floats;
      case Space::data:
        return p_.data;
      default:
        return w_.conditions + (first_ + image) * p_.condition_floats;
    }
  }

  // One channel of a buffer; null outside the grid.
  PIXELFAST_DEVICE const float* place(int32_t buffer, int32_t channel, const Row& r, int32_t y,
                                      int32_t x) const {
    const FlatBuffer& b = tables_.buffer(buffer);
    if (y < 0 || y >= b.height || x < 0 || x >= b.width) return nullptr;
    return base(b, r.image) + tables_.place(b.rows + y) + tables_.place(b.columns + x) + channel;
  }
  PIXELFAST_DEVICE float* here(int32_t buffer, int32_t channel, const Row& r) const {
    return const_cast<float*>(place(buffer, channel, r, r.y, r.x));
  }

  // Of the images of the run.
  PIXELFAST_DEVICE int64_t pixel(const Row& r, int32_t colour) const {
    return ((image(r) * p_.colours + colour) * p_.height + r.y) * p_.width + r.x;
  }

 private:
  const Walk& w_;
  const FlatProgram& p_;
  const Tables tables_;
  const int team_;
  int64_t first_ = 0, images_ = 0;
};

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
