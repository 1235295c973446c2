// Runs unmodified CUDA kernels on the host, to test their logic. Each thread is a fibre; blocks run one after the
// other.
//
// Threads run in a shuffled order between barriers, so that a missing barrier changes the result. Shared memory holds
// NaN before each block. A barrier or warp operation that some threads miss raises EmulatorError. With
// AddressSanitizer, shared arrays have red zones (-fsanitize-sections=exml_shared).
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
// Shared variables have a linker section of their own, where the emulator finds them.
#define __shared__ static __attribute__((section("exml_shared")))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;
using cudaStream_t = void*;

namespace exml::emulator {

struct EmulatorError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Number of launches so far, and the seed of the order in which threads and blocks run.
inline int64_t launches = 0;
inline uint64_t order_seed = 1;

void run(dim3 grid, dim3 block, const std::function<void()>& kernel);
void block_barrier(const std::source_location& where);
// Waits for the lanes of `mask`, then copies the `size` bytes that the source lane gave to this call.
void exchange(unsigned mask, const void* mine, void* theirs, size_t size, int source_lane,
              const std::source_location& where);
int lane();

template <typename T>
T shuffle(unsigned mask, T value, int source_lane, const std::source_location& where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  T result;
  exchange(mask, &value, &result, sizeof(T), source_lane, where);
  return result;
}

}  // namespace exml::emulator

inline void __syncthreads(const std::source_location& where = std::source_location::current()) {
  exml::emulator::block_barrier(where);
}
inline void __syncwarp(unsigned mask = 0xffffffff,
                       const std::source_location& where = std::source_location::current()) {
  exml::emulator::exchange(mask, nullptr, nullptr, 0, exml::emulator::lane(), where);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int offset,
                   const std::source_location& where = std::source_location::current()) {
  const int lane = exml::emulator::lane(), source = lane + offset < 32 ? lane + offset : lane;
  return exml::emulator::shuffle(mask, value, source, where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits,
                  const std::source_location& where = std::source_location::current()) {
  return exml::emulator::shuffle(mask, value, exml::emulator::lane() ^ bits, where);
}

namespace exml::cuda {

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t, Arguments... arguments) {
  emulator::run(grid, block, [&] { kernel(arguments...); });
}

}  // namespace exml::cuda
