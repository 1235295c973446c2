// Includes EXML_SIMD_SOURCE once for each instruction set, each time in a namespace of its own (EXML_CAPABILITY).
// The source, and the headers that it includes, may only define functions, types and constants in that namespace.
#include "math/activation.h"
#include "ops/cpu/capability.h"
#include "ops/cpu/simd.h"

#define EXML_CAPABILITY baseline
#include "ops/cpu/basic_simd.h"
#include "ops/cpu/elementary_simd.h"
#include EXML_SIMD_SOURCE
#undef EXML_CAPABILITY

#if EXML_CPU_VARIANTS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define EXML_AVX2  // GCC defines no macro for a target that a pragma sets
#define EXML_CAPABILITY avx2
#include "ops/cpu/basic_simd.h"
#include "ops/cpu/elementary_simd.h"
#include EXML_SIMD_SOURCE
#undef EXML_CAPABILITY
#undef EXML_AVX2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define EXML_AVX512
#define EXML_CAPABILITY avx512
#include "ops/cpu/basic_simd.h"
#include "ops/cpu/elementary_simd.h"
#include EXML_SIMD_SOURCE
#undef EXML_CAPABILITY
#undef EXML_AVX512
#pragma GCC pop_options
#endif

#undef EXML_SIMD_SOURCE
