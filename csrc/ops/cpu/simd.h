// 64-byte vectors by the compiler's vector extension, which lowers them to the registers of the target.
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

template <typename A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(64)));
  typedef int32_t mask __attribute__((vector_size(64)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(64)));
  typedef int64_t mask __attribute__((vector_size(64)));
};
template <typename A>
using Vector = typename VectorOf<A>::type;
template <typename A>
using Mask = typename VectorOf<A>::mask;
template <typename A>
constexpr int kLanes = 64 / sizeof(A);

// A byte for each lane.
template <typename A>
struct BytesOf;
template <>
struct BytesOf<float> {
  typedef uint8_t type __attribute__((vector_size(16)));
};
template <>
struct BytesOf<double> {
  typedef uint8_t type __attribute__((vector_size(8)));
};

typedef uint16_t HalfWords __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(64)));

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
inline const bool kRoundsToBFloat16 = __builtin_cpu_supports("avx512bf16");
#endif

}  // namespace exml::cpu
