// Philox4x32-10 (Salmon et al. 2011): noise by counting. Key: the seed. Counter: (pixel, colour) and the
// index of the image, so that image k is the same image in whatever batch, order or thread it is drawn.
#pragma once

#include <cstdint>

#include "core/portable.h"

namespace pixelfast {

struct Philox {
  uint32_t word[4];
};

PIXELFAST_BOTH static inline Philox philox(uint64_t seed, uint64_t image, uint64_t counter) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32);
  uint32_t c2 = static_cast<uint32_t>(image), c3 = static_cast<uint32_t>(image >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

// The integer in [0, 2^31) that decides the draw of one colour of one pixel.
PIXELFAST_BOTH static inline uint32_t draw_bits(uint64_t seed, uint64_t image, uint64_t counter) {
  return philox(seed, image, counter).word[0] >> 1;
}

}  // namespace pixelfast
