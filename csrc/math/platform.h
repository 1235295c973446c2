// Macros by which one formula serves the CPU kernels, the CUDA kernels and the host tests.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define EXML_HD __host__ __device__ __forceinline__
#else
#define EXML_HD inline
#endif
