// The instruction sets of this machine.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace pixelfast {

// Those that this machine can run, the best last.
const std::vector<const Kernels*>& usable_kernels();

// By name; an empty name means PIXELFAST_ISA where that is set, else the best. Throws std::invalid_argument.
const Kernels& find_kernels(const std::string& name);

}  // namespace pixelfast
