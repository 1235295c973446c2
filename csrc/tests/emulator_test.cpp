// The emulator must run correct kernels correctly and reject wrong ones: the tests of the kernels rely on it.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "ops/cuda/reduce.h"

namespace exml::cuda {
namespace {

using emulator::EmulatorError;

__global__ void reverse_kernel(const int* in, int* out) {
  __shared__ int shared[96];
  shared[threadIdx.x] = in[blockIdx.x * 96 + threadIdx.x];
  __syncthreads();
  out[blockIdx.x * 96 + threadIdx.x] = shared[95 - threadIdx.x];
}

TEST(Emulator, BarrierOrdersSharedMemory) {
  std::vector<int> in(4 * 96), out(4 * 96, -1);
  for (int i = 0; i < 4 * 96; ++i) in[i] = i * i;
  launch(reverse_kernel, 4, 96, nullptr, in.data(), out.data());
  for (int b = 0; b < 4; ++b)
    for (int t = 0; t < 96; ++t) ASSERT_EQ(out[b * 96 + t], in[b * 96 + 95 - t]);
}

__global__ void racing_kernel(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = shared[63 - threadIdx.x];
}

TEST(Emulator, MissingBarrierShows) {
  std::vector<int> out(64);
  launch(racing_kernel, 1, 64, nullptr, out.data());
  int wrong = 0;
  for (int t = 0; t < 64; ++t) wrong += out[t] != 63 - t;
  EXPECT_GT(wrong, 0);
}

__global__ void unwritten_kernel(double* out) {
  __shared__ double shared[1];
  if (threadIdx.x > 32) shared[0] = 1;
  __syncthreads();
  out[0] = shared[0];
}

TEST(Emulator, SharedMemoryStartsAsNan) {
  double out = 0;
  launch(unwritten_kernel, 1, 64, nullptr, &out);
  EXPECT_EQ(out, 1);
  launch(unwritten_kernel, 1, 32, nullptr, &out);
  EXPECT_TRUE(std::isnan(out));
}

__global__ void sums_kernel(const double* in, double* warps, double* block, double* down) {
  __shared__ double shared[4];
  const double mine = in[threadIdx.x];
  warps[threadIdx.x] = warp_reduce(mine, Sum{});
  block[threadIdx.x] = block_reduce<4>(mine, Sum{}, shared);
  down[threadIdx.x] = __shfl_down_sync(kAllLanes, mine, 3);
  __syncwarp();
}

TEST(Emulator, ShufflesAndReductions) {
  std::vector<double> in(128), warps(128), block(128), down(128);
  double total = 0;
  for (int t = 0; t < 128; ++t) total += in[t] = t * t;
  launch(sums_kernel, 1, 128, nullptr, in.data(), warps.data(), block.data(), down.data());
  for (int t = 0; t < 128; ++t) {
    double warp = 0;
    for (int i = t / 32 * 32; i < t / 32 * 32 + 32; ++i) warp += in[i];
    ASSERT_EQ(warps[t], warp);
    ASSERT_EQ(block[t], total);
    ASSERT_EQ(down[t], t % 32 < 29 ? in[t + 3] : in[t]);
  }
}

__global__ void early_exit_kernel() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}
__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void missing_lane_kernel(int* out) {
  if (threadIdx.x != 7) out[threadIdx.x] = __shfl_xor_sync(kAllLanes, int(threadIdx.x), 1);
}
__global__ void divergent_shuffle_kernel(int* out) {
  if (threadIdx.x % 2)
    out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1, 1);
  else
    out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 2, 1);
}
__global__ void barrier_beside_shuffle_kernel(int* out) {
  if (threadIdx.x == 0) __syncthreads();
  out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1, 1);
}

TEST(Emulator, RefusesDivergence) {
  int out[64];
  EXPECT_THROW(launch(early_exit_kernel, 1, 64, nullptr), EmulatorError);
  EXPECT_THROW(launch(divergent_barrier_kernel, 1, 64, nullptr), EmulatorError);
  EXPECT_THROW(launch(missing_lane_kernel, 1, 64, nullptr, out), EmulatorError);
  EXPECT_THROW(launch(divergent_shuffle_kernel, 1, 64, nullptr, out), EmulatorError);
  EXPECT_THROW(launch(barrier_beside_shuffle_kernel, 1, 64, nullptr, out), EmulatorError);
  // A block of less than a warp has no thread for every lane of a full mask.
  EXPECT_THROW(launch(divergent_shuffle_kernel, 1, 20, nullptr, out), EmulatorError);
  EXPECT_THROW(launch(early_exit_kernel, dim3(1, 65536), 64, nullptr), EmulatorError);
  EXPECT_THROW(launch(early_exit_kernel, 0, 64, nullptr), EmulatorError);
}

#if defined(__SANITIZE_ADDRESS__)
__global__ void overrun_kernel(int by) {
  __shared__ int shared[64];
  int* volatile values = shared;  // hides the bounds from UBSan
  values[threadIdx.x + by] = 1;
}

TEST(Emulator, AddressSanitizerGuardsSharedMemory) {
  launch(overrun_kernel, 1, 64, nullptr, 0);
  EXPECT_DEATH(launch(overrun_kernel, 1, 64, nullptr, 1), "AddressSanitizer");
}
#endif

}  // namespace
}  // namespace exml::cuda
