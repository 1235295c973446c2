// Kernel launches, written so that the host tests can compile the same sources and run them in the emulator.
#pragma once

#include <cstdint>

#ifdef EXML_CUDA_EMULATOR

#include "emulator/cuda_emulator.h"

#else

#include <cuda_runtime_api.h>

#ifdef __CUDACC__

namespace exml::cuda {

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream, Arguments... arguments) {
  // clang-format off
  kernel<<<grid, block, 0, stream>>>(arguments...);
  // clang-format on
}

}  // namespace exml::cuda

#endif
#endif

namespace exml::cuda {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Smallest power of two that is at least n, between 1 and 32: lanes of a warp that share a task of n parts.
constexpr int lanes_for(int64_t n) {
  int lanes = 1;
  while (lanes < n && lanes < 32) lanes *= 2;
  return lanes;
}

}  // namespace exml::cuda
