// Reductions over a warp or a block, in a fixed order: the same input gives the same bits.
#pragma once

#include "ops/cuda/launch.h"

namespace exml::cuda {

constexpr unsigned kAllLanes = 0xffffffff;

struct Sum {
  template <typename A>
  __device__ A operator()(A a, A b) const {
    return a + b;
  }
};

// The larger of two values. It ignores NaN; the sums that are formed afterwards do not.
struct Largest {
  template <typename A>
  __device__ A operator()(A a, A b) const {
    return a > b ? a : b;
  }
};

// The result in every lane. Op must be commutative.
template <typename A, typename Op>
__device__ __forceinline__ A warp_reduce(A value, Op op) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = op(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

// The result in every thread of a block of 32 * kWarps. shared: kWarps values, free for use again on return.
template <int kWarps, typename A, typename Op>
__device__ __forceinline__ A block_reduce(A value, Op op, A* shared) {
  value = warp_reduce(value, op);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[0];
  for (int i = 1; i < kWarps; ++i) value = op(value, shared[i]);
  __syncthreads();
  return value;
}

// The same over each group of kGroup threads, a warp or the whole block.
template <int kGroup, typename A, typename Op>
__device__ __forceinline__ A group_reduce(A value, Op op, A* shared) {
  static_assert(kGroup % 32 == 0);
  if constexpr (kGroup == 32)
    return warp_reduce(value, op);
  else
    return block_reduce<kGroup / 32>(value, op, shared);
}

}  // namespace exml::cuda
