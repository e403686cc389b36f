// Numbers of the bf16 mode: the upper half of a float, rounded to the nearest even.
#pragma once

#include <cstdint>

#include "core/portable.h"

namespace pixelfast {

PIXELFAST_BOTH inline uint32_t float_bits(float x) {
  uint32_t bits = 0;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

PIXELFAST_BOTH inline uint16_t bf16_of(float x) {
  const uint32_t bits = float_bits(x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);  // still NaN
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

PIXELFAST_BOTH inline float from_bf16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float found = 0;
  __builtin_memcpy(&found, &bits, sizeof found);
  return found;
}

}  // namespace pixelfast
