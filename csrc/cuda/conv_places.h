// Where the kernels of masked convolutions find numbers.
#pragma once

#include "cuda/conv.h"
#include "cuda/simt.h"

namespace pixelfast {
namespace cuda {
namespace {

PIXELFAST_DEVICE inline int least(int a, int b) { return a < b ? a : b; }

struct Position {
  int32_t n, y, x;

  // `count` further, row by row; the rows of an image are followed by those of the next.
  PIXELFAST_DEVICE void advance(int count, int32_t height, int32_t width) {
    for (x += count; x >= width; x -= width) {
      if (++y == height) y = 0, ++n;
    }
  }
};

PIXELFAST_DEVICE inline Position position_of(int64_t p, int32_t height, int32_t width) {
  const int64_t row = p / width;
  return {static_cast<int32_t>(row / height), static_cast<int32_t>(row % height),
          static_cast<int32_t>(p % width)};
}

// Of the grid that tiles walk. Those before the first one are of images before the first one.
PIXELFAST_DEVICE inline Position grid_position(const ConvShape& a, int64_t p) {
  const int64_t image = int64_t{a.height} * a.columns, before = p < 0 ? (image - 1 - p) / image : 0;
  Position at = position_of(p + before * image, a.height, a.columns);
  at.n -= static_cast<int32_t>(before);
  return at;
}

PIXELFAST_DEVICE inline int64_t place_of(const Strides& s, const Position& p, int64_t c) {
  return p.n * s.n + c * s.c + p.y * s.y + p.x * s.x;
}

// Along that grid, and through a tensor.
struct Walk {
  Position at;
  int64_t place;

  PIXELFAST_DEVICE Walk(const ConvShape& a, const Strides& s, int64_t p)
      : at(grid_position(a, p)), place(place_of(s, at, 0)) {}
  PIXELFAST_DEVICE void advance(const ConvShape& a, const Strides& s, int count) {
    at.x += count, place += count * s.x;
    while (at.x >= a.columns) {
      at.x -= a.columns, place += s.y - a.columns * s.x;
      if (++at.y == a.height) at.y = 0, ++at.n, place += s.n - a.height * s.y;
    }
  }
};

// Where a walk through the input is, for a line of a strip.
struct Line {
  int64_t place;
  uint32_t y;

  Line() = default;
  PIXELFAST_DEVICE Line(const ConvShape& a, const Walk& walk)
      : place(walk.place),
        y(walk.at.n >= 0 && walk.at.n < a.batch && walk.at.x < a.in_width ? walk.at.y : kNowhere) {}
  PIXELFAST_DEVICE bool is_inside(const ConvShape& a, int dy) const {
    return y + static_cast<uint32_t>(dy) < static_cast<uint32_t>(a.in_height);
  }

 private:
  static constexpr uint32_t kNowhere = 2 * kMostSide + 1;
};

template <class Args>
PIXELFAST_DEVICE inline bool is_live(const Args& a, int64_t channel, int64_t input, int tap) {
  return a.mask == nullptr ||
         a.mask[channel * a.mask_strides.n + input * a.mask_strides.c + a.tap_mask[tap]] != 0;
}

template <class Args>
PIXELFAST_DEVICE inline int64_t weight_place(const Args& a, int64_t channel, int64_t input, int tap) {
  return channel * a.weight_strides.n + input * a.weight_strides.c + a.tap_weight[tap];
}

// A number of half precision, where single numbers are worked with.
template <simt::Half kHalf>
struct Number {
  uint16_t bits;

  Number() = default;
  PIXELFAST_DEVICE explicit Number(float x) : bits(simt::narrow<kHalf>(x)) {}
  PIXELFAST_DEVICE explicit operator float() const { return simt::widen<kHalf>(bits); }
};

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
