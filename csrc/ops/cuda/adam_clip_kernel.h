// Launcher of the adam_clip_ kernel. T: float or double; G: T or BFloat16.
#pragma once

#include "math/adam.h"
#include "math/bfloat16.h"
#include "ops/cuda/launch.h"

namespace exml::cuda {

template <typename T, typename G>
struct AdamClipArguments {
  T *x, *exp_avg, *exp_avg_sq;  // in one of the two orders
  const G* grad;                // in the same order, or (grad_transposed) in the other
  int64_t batch, channels, plane;
  bool channels_last, grad_transposed;
  // One of the two is given.
  const int64_t* step;
  const float* real_step;
  const T* lr;
  const T *low, *high;  // (channels,) or null
  const bool* active;   // (batch,) or null
  AdamRates rates;
};

template <typename T, typename G>
void adam_clip(const AdamClipArguments<T, G>& arguments, cudaStream_t stream);

}  // namespace exml::cuda
