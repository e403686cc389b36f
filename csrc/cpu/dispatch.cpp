#include "cpu/dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace pixelfast {
namespace {

std::vector<const Kernels*> detect() {
  std::vector<const Kernels*> found = {&kScalarKernels};
#ifdef PIXELFAST_X86
  __builtin_cpu_init();  // its answers include what the operating system saves
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) found.push_back(&kAvx2Kernels);
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&kAvx512Kernels);
  }
#endif
  return found;
}

}  // namespace

const std::vector<const Kernels*>& usable_kernels() {
  static const std::vector<const Kernels*> kernels = detect();
  return kernels;
}

const Kernels& find_kernels(const std::string& name) {
  const char* variable = std::getenv("PIXELFAST_ISA");
  const bool from_variable = name.empty() && variable != nullptr && *variable != '\0';
  const std::string wanted = from_variable ? variable : name;
  const auto& kernels = usable_kernels();
  if (wanted.empty()) return *kernels.back();
  std::string names;
  for (const Kernels* k : kernels) {
    if (wanted == k->name) return *k;
    names += (names.empty() ? "" : ", ") + std::string(k->name);
  }
  throw std::invalid_argument(std::string("[isa] ") + (from_variable ? "PIXELFAST_ISA" : "isa") + " is '" +
                              wanted + "', but this machine runs: " + names);
}

const Bf16Kernels& find_bf16_kernels(const Kernels& kernels) {
#ifdef PIXELFAST_X86
  if (&kernels == &kAvx512Kernels && __builtin_cpu_supports("avx512bf16")) return kAvx512Bf16Kernels;
#endif
  const bool best = &kernels == usable_kernels().back();
  throw std::invalid_argument("[precision] bf16 needs AVX-512 with BF16, which " +
                              (best ? "this machine" : "isa '" + std::string(kernels.name) + "'") +
                              " lacks; use precision \"fp32\"");
}

}  // namespace pixelfast
