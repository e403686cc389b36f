#include "cpu/dispatch.h"

#ifdef PIXELFAST_AMX
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

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

#ifdef PIXELFAST_AMX
// Whether there are tiles, and the system lets this process have them, for which it must be asked.
bool may_use_amx() {
#ifdef __linux__
  constexpr unsigned kTiles = 1u << 24, kBf16 = 1u << 22;  // of register d
  constexpr long kRequest = 0x1023, kTileData = 18;        // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & (kTiles | kBf16)) != (kTiles | kBf16))
    return false;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif

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

bool has_bf16(const Kernels& kernels) {
#ifdef PIXELFAST_X86
  return &kernels == &kAvx512Kernels && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

const Bf16Kernels& find_bf16_kernels(const Kernels& kernels) {
#ifdef PIXELFAST_X86
  if (has_bf16(kernels)) {
    std::vector<const Bf16Kernels*> found = {&kAvx512Bf16Kernels};
#ifdef PIXELFAST_AMX
    static const bool amx = may_use_amx();
    if (amx) found.push_back(&kAmxKernels);
#endif
    const char* variable = std::getenv("PIXELFAST_BF16");
    const std::string wanted = variable != nullptr && *variable != '\0' ? variable : found.back()->name;
    std::string names;
    for (const Bf16Kernels* k : found) {
      if (wanted == k->name) return *k;
      names += (names.empty() ? "" : ", ") + std::string(k->name);
    }
    throw std::invalid_argument("[precision] PIXELFAST_BF16 is '" + wanted +
                                "', but this machine runs: " + names);
  }
#endif
  const bool best = &kernels == usable_kernels().back();
  throw std::invalid_argument("[precision] bf16 needs AVX-512 with BF16, which " +
                              (best ? "this machine" : "isa '" + std::string(kernels.name) + "'") +
                              " lacks; use precision \"fp32\"");
}

}  // namespace pixelfast
