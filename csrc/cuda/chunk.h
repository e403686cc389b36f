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
    const auto space = static_cast<Space>(b.space);
    return space == Space::arena
               ? w_.arena + (static_cast<int64_t>(team_) * w_.chunk + image) * p_.arena_floats
           : space == Space::data ? p_.data
                                  : w_.conditions + (first_ + image) * p_.condition_floats;
  }

  // One channel of a buffer; null outside the grid. Without branches, so that lookups of several rows do not
  // wait for each other.
  PIXELFAST_DEVICE const float* place(const FlatBuffer& b, int32_t channel, const Row& r, int32_t y,
                                      int32_t x) const {
    const bool inside = (y >= 0) & (y < b.height) & (x >= 0) & (x < b.width);
    const int32_t row = tables_.place(b.rows + (inside ? y : 0));
    const int32_t column = tables_.place(b.columns + (inside ? x : 0));
    const float* const found = base(b, r.image) + row + column + channel;
    return inside ? found : nullptr;
  }
  PIXELFAST_DEVICE float* here(int32_t buffer, int32_t channel, const Row& r) const {
    return const_cast<float*>(place(tables_.buffer(buffer), channel, r, r.y, r.x));
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
