#include "core/request.h"

namespace pixelfast {

const char* describe(Flaw flaw) {
  switch (flaw) {
    case Flaw::nan:
      return "NaN logits";
    case Flaw::infinite:
      return "infinite logits";
    case Flaw::impossible:
      return "no level a chance (every logit is -inf)";
    default:
      return "";
  }
}

std::string flaw_message(Flaw flaw, int64_t image, int64_t y, int64_t x, int64_t colour) {
  return std::string("[sample] the model gave ") + describe(flaw) + " at image " + std::to_string(image) +
         ", pixel (" + std::to_string(y) + ", " + std::to_string(x) + "), colour " + std::to_string(colour);
}

}  // namespace pixelfast
