// Numbers of half precision: a sign, five bits of exponent, ten of fraction.
#pragma once

#include <cstdint>

#include "core/bf16.h"

namespace pixelfast {

PIXELFAST_BOTH inline float from_fp16(uint16_t x) {
  const uint32_t sign = (x & 0x8000u) << 16, exponent = x >> 10 & 31, fraction = x & 0x3FF;
  float found = static_cast<float>(fraction) * 0x1p-24f;  // subnormal
  if (exponent != 0) {
    const uint32_t bits = (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    __builtin_memcpy(&found, &bits, sizeof found);
  }
  const uint32_t bits = float_bits(found) | sign;
  __builtin_memcpy(&found, &bits, sizeof found);
  return found;
}

// Rounded to the nearest even.
PIXELFAST_BOTH inline uint16_t fp16_of(float x) {
  const uint32_t bits = float_bits(x), magnitude = bits & 0x7FFFFFFF;
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);   // NaN
  if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // beyond 65519
  if (magnitude < 0x38800000) {                                              // subnormal, or zero
    float shifted = 0;
    __builtin_memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 0.5f;  // whose last bit is worth as much as that of a subnormal
    return static_cast<uint16_t>(sign | (float_bits(shifted) - float_bits(0.5f)));
  }
  const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112 << 10)));
}

}  // namespace pixelfast
