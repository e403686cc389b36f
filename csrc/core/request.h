// What a caller asks of a runtime, and what it says where logits give no distribution.
#pragma once

#include <cstdint>
#include <string>

namespace pixelfast {

struct Sampling {
  float inverse_temperature = 1.0f;
  int top_k = 0;       // 0: all levels
  double top_p = 1.0;  // 1: all of the mass
};

// Why logits give no distribution.
enum class Flaw { none, nan, infinite, impossible };

const char* describe(Flaw flaw);  // to follow "the model gave "
std::string flaw_message(Flaw flaw, int64_t image, int64_t y, int64_t x, int64_t colour);

struct Request {
  int32_t* images = nullptr;       // (n, colours, height, width), in and out
  float* log_prob = nullptr;       // likewise, out
  const uint8_t* given = nullptr;  // likewise, or null: then `all_given` holds for every pixel
  bool all_given = false;
  const float* conditions = nullptr;  // (n, condition_floats), or null where that is 0
  int64_t n = 0;
  uint64_t seed = 0, first_index = 0;
  Sampling sampling;
  int chunk = 0, team = 0;  // images worked on at once, and how many share them; 0: as is sensible
};

}  // namespace pixelfast
