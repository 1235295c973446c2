#include "ops/cpu/capability.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace exml::cpu {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

Capability detect() {
  Capability best = Capability::baseline;
#if EXML_CPU_VARIANTS
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Capability::avx2;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    best = Capability::avx512;
#endif
  if (const char* wanted = std::getenv("EXML_CPU_CAPABILITY"))
    for (int i = 0; i < 3; ++i)
      if (std::strcmp(wanted, kNames[i]) == 0) best = std::min(best, static_cast<Capability>(i));
  return best;
}

}  // namespace

Capability capability() {
  static const Capability chosen = detect();
  return chosen;
}

const char* capability_name() { return kNames[static_cast<int>(capability())]; }

}  // namespace exml::cpu
