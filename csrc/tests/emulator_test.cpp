// The emulator itself: it must run what a GPU runs, and object to what a GPU would hang on.
#include <gtest/gtest.h>

#include <vector>

#include "ops/cuda/reduce.h"

namespace exml {
namespace {

__global__ void reverse_kernel(int* values) {
  __shared__ int shared[96];
  shared[threadIdx.x] = values[blockIdx.x * 96 + threadIdx.x];
  __syncthreads();
  values[blockIdx.x * 96 + threadIdx.x] = shared[95 - threadIdx.x];
}

TEST(Emulator, BarriersAndBlocks) {
  std::vector<int> values(192);
  for (int i = 0; i < 192; ++i) values[i] = i;
  cuda::launch(reverse_kernel, dim3(2), dim3(96), nullptr, values.data());
  for (int i = 0; i < 192; ++i) EXPECT_EQ(values[i], i / 96 * 96 + 95 - i % 96);
}

__global__ void butterfly_kernel(float* values) {
  float value = values[threadIdx.x];
  for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  values[threadIdx.x] = value;
}

TEST(Emulator, Shuffles) {
  std::vector<float> values(64);
  for (int i = 0; i < 64; ++i) values[i] = float(i);
  cuda::launch(butterfly_kernel, dim3(1), dim3(64), nullptr, values.data());
  for (int i = 0; i < 64; ++i) EXPECT_EQ(values[i], i < 32 ? 496.0f : 1520.0f);
}

__global__ void divergent_kernel() {
  if (threadIdx.x < 3) return;
  __syncthreads();
}

TEST(Emulator, ObjectsToDivergentBarriers) {
  EXPECT_THROW(cuda::launch(divergent_kernel, dim3(1), dim3(32), nullptr), std::logic_error);
}

__global__ void sum_kernel(const double* values, double* out) {
  const double total = cuda::block_reduce<64>(values[threadIdx.x], cuda::Add<double>());
  out[threadIdx.x] = total + cuda::block_reduce<64>(1.0, cuda::Add<double>());
}

TEST(Emulator, BlockReduceReachesEveryThread) {
  std::vector<double> values(64, 0.5), out(64);
  cuda::launch(sum_kernel, dim3(1), dim3(64), nullptr, values.data(), out.data());
  for (const double value : out) EXPECT_EQ(value, 32 + 64);
}

}  // namespace
}  // namespace exml
