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

// Whether the bf16 mode runs with them on this machine.
bool has_bf16(const Kernels& kernels);

// What the bf16 mode needs besides: AMX, where the processor has it and the system lends it, or what
// PIXELFAST_BF16 says. Throws std::invalid_argument where the machine or the instruction set lacks it.
const Bf16Kernels& find_bf16_kernels(const Kernels& kernels);

}  // namespace pixelfast
