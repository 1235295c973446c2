// Kernel launches that compile under nvcc, and as plain C++ for the host emulator of csrc/tests.
#pragma once

#include "math/platform.h"

#if defined(EXML_EMULATE_CUDA)
#include "tests/cuda_on_host.h"
#else
#include <cuda_runtime.h>
#endif

namespace exml::cuda {

constexpr int kWarp = 32;

#if defined(__CUDACC__)
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream, Arguments... arguments) {
  kernel<<<grid, block, 0, stream>>>(Parameters(arguments)...);
}
#elif defined(EXML_EMULATE_CUDA)
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t, Arguments... arguments) {
  emulator::launch(grid, block, [&] { kernel(Parameters(arguments)...); });
}
#endif

inline unsigned blocks_for(int64_t items, int64_t per_block, int64_t most = 0x7fffffff) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

// Four neighbouring values, moved by one instruction where their address allows.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T value[4];
};

template <typename T>
bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (4 * sizeof(T)) == 0;
}

}  // namespace exml::cuda
