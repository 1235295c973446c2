// Launcher of the jitter_flip kernel. T, U: float, double or BFloat16.
#pragma once

#include "math/bfloat16.h"
#include "math/jitter.h"
#include "ops/cuda/launch.h"

namespace exml::cuda {

template <typename T, typename U>
struct JitterFlipArguments {
  const T* x;
  int64_t strides[4];  // of x: (N, C, H, W)
  U* out;              // contiguous or channels_last
  bool channels_last;
  int64_t batch, channels, height, width;
  // Of image n: pixels down and right at n * shift_step, whether it is mirrored at n * flip_step.
  const int64_t* shift;
  const bool* flip;
  int64_t shift_step, flip_step;
  bool wrap, adjoint;
};

template <typename T, typename U>
void jitter_flip(const JitterFlipArguments<T, U>& arguments, cudaStream_t stream);

}  // namespace exml::cuda
