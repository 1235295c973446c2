// Rows of logits, each handled by a group of threads: a warp, or a block for long ones.
#pragma once

#include "math/bfloat16.h"
#include "ops/cuda/reduce.h"

namespace exml::cuda {

constexpr int kRowThreads = 256;
// Rows of more classes get a block each, shorter ones a warp.
constexpr int64_t kWarpClasses = 1024;

template <int kGroup>
unsigned row_blocks(int64_t rows) {
  return static_cast<unsigned>(divide_up(rows, kRowThreads / kGroup));
}

// The row that this group of threads handles; the last block may have groups without one.
template <int kGroup>
__device__ __forceinline__ int64_t this_row() {
  return int64_t(blockIdx.x) * (kRowThreads / kGroup) + threadIdx.x / kGroup;
}

// The largest logit of a row, in all threads of the group. count: 0 for a group without a row, which keeps the others
// company at barriers. shared: a value for each warp.
template <int kGroup, typename T>
__device__ __forceinline__ Accumulator<T> row_top(const T* row, int64_t count, Accumulator<T>* shared) {
  Accumulator<T> top = -INFINITY;
#pragma unroll 4
  for (int64_t k = threadIdx.x % kGroup; k < count; k += kGroup) top = Largest{}(top, widen(row[k]));
  return group_reduce<kGroup>(top, Largest{}, shared);
}

// The log-sum-exp of (row - top) * scale, likewise. Differences of large logits lose nothing.
template <int kGroup, typename T>
__device__ __forceinline__ Accumulator<T> row_lse(const T* row, int64_t count, Accumulator<T> top, Accumulator<T> scale,
                                                  Accumulator<T>* shared) {
  Accumulator<T> total = 0;
#pragma unroll 4
  for (int64_t k = threadIdx.x % kGroup; k < count; k += kGroup) total += std::exp((widen(row[k]) - top) * scale);
  return std::log(group_reduce<kGroup>(total, Sum{}, shared));
}

}  // namespace exml::cuda
