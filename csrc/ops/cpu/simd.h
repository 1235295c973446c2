// What the vectors of every instruction set (basic_simd.h) share. They are the compiler's vector extension.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "math/bfloat16.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#endif

#define EXML_INLINE static inline __attribute__((always_inline))

namespace exml::cpu {

// Lanes of the widest vector of all instruction sets.
template <typename A>
constexpr int kMostLanes = 64 / sizeof(A);

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
inline const bool kRoundsToBFloat16 = __builtin_cpu_supports("avx512bf16");
#endif

}  // namespace exml::cpu
