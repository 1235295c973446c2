// Run-time choice among builds of the same kernel for different instruction sets.
#pragma once

namespace exml::cpu {

enum class Capability { baseline, avx2, avx512 };

// The best instruction set that this processor has and this build contains. EXML_CPU_CAPABILITY=baseline|avx2|avx512
// lowers it.
Capability capability();
const char* capability_name();

}  // namespace exml::cpu

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EXML_CPU_VARIANTS 1
#define EXML_CPU_CALL(function, ...)                                                                         \
  (::exml::cpu::capability() == ::exml::cpu::Capability::avx512 ? ::exml::cpu::avx512::function(__VA_ARGS__) \
   : ::exml::cpu::capability() == ::exml::cpu::Capability::avx2 ? ::exml::cpu::avx2::function(__VA_ARGS__)   \
                                                                : ::exml::cpu::baseline::function(__VA_ARGS__))
#else
#define EXML_CPU_VARIANTS 0
#define EXML_CPU_CALL(function, ...) ::exml::cpu::baseline::function(__VA_ARGS__)
#endif
