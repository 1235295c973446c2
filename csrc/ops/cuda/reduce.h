// Reductions over a block in a fixed order, so that the same input gives the same bits.
#pragma once

#include "ops/cuda/launch.h"

namespace exml::cuda {

// Shared memory for values whose constructor is not trivial.
template <typename V, int kCount>
struct SharedArray {
  alignas(V) unsigned char bytes[kCount * sizeof(V)];
  __device__ V& operator[](int i) { return reinterpret_cast<V*>(bytes)[i]; }
};

// The values of threads 0 .. kThreads - 1 combined pairwise; every thread gets the result. V: a small struct or number.
template <int kThreads, typename V, typename F>
__device__ V block_reduce(V value, F f) {
  static_assert((kThreads & (kThreads - 1)) == 0, "a power of two");
  __shared__ SharedArray<V, kThreads> values;
  const int i = threadIdx.x;
  __syncthreads();  // an earlier reduction may still be reading
  values[i] = value;
  __syncthreads();
#pragma unroll
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (i < half) values[i] = f(values[i], values[i + half]);
    __syncthreads();
  }
  return values[0];
}

template <typename A>
struct Add {
  __device__ A operator()(A a, A b) const { return a + b; }
};

template <typename A>
struct Largest {
  __device__ A operator()(A a, A b) const { return a > b ? a : b; }
};

}  // namespace exml::cuda
