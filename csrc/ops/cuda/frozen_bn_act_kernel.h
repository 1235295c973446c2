// Launchers of the frozen_bn_act kernels. T: float, double or BFloat16.
#pragma once

#include "math/activation.h"
#include "math/bfloat16.h"
#include "ops/cuda/channel_shape.h"
#include "ops/cuda/launch.h"

namespace exml::cuda {

// act(scale x + shift (+ residual)); residual may be null.
template <typename T>
struct FrozenNorm {
  const Accumulator<T>*scale, *shift;
  const T* residual;
  Activation activation;
  Accumulator<T> negative_slope;
};

// Bytes of scratch memory that frozen_bn_act_forward needs for x.
template <typename T>
int64_t frozen_bn_act_workspace(const T* x, const FrozenNorm<T>& norm, const ChannelShape& shape, const T* y,
                                int multiprocessors);

// Writes y, laid out as x, mean and var of every channel and, unless it is null, mask: 1 where relu passes the
// gradient, 0 elsewhere, laid out as x.
template <typename T>
void frozen_bn_act_forward(const T* x, const FrozenNorm<T>& norm, const ChannelShape& shape, int multiprocessors,
                           void* workspace, T* y, Accumulator<T>* mean, Accumulator<T>* var, uint8_t* mask,
                           cudaStream_t stream);

// The gradients of y, mean and var, each of which may be null, and the mean and the mask of the forward pass. The mask
// may be null.
template <typename T>
struct FrozenNormGrads {
  const T* y;
  const Accumulator<T>*mean, *var, *batch_mean;
  const uint8_t* mask;
};

// Writes grad_x and, unless it is null, grad_residual, both laid out as x.
template <typename T>
void frozen_bn_act_backward(const FrozenNormGrads<T>& grads, const T* x, const FrozenNorm<T>& norm,
                            const ChannelShape& shape, int multiprocessors, T* grad_x, T* grad_residual,
                            cudaStream_t stream);

}  // namespace exml::cuda
