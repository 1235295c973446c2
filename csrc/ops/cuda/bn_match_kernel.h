// Launchers of the bn_match kernels. T: float, double or BFloat16.
#pragma once

#include "math/bfloat16.h"
#include "math/statistics_distance.h"
#include "ops/cuda/channel_shape.h"
#include "ops/cuda/launch.h"

namespace exml::cuda {

// Bytes of scratch memory that bn_match_forward needs for x.
template <typename T>
int64_t bn_match_workspace(const T* x, const ChannelShape& shape, int multiprocessors);

// Writes the loss (one value) and the coefficients (3, channels): PixelGradient by rows.
template <typename T>
void bn_match_forward(const T* x, const ChannelShape& shape, const Accumulator<T>* mean, const Accumulator<T>* var,
                      Distance distance, Moment moment, int multiprocessors, void* workspace, Accumulator<T>* loss,
                      Accumulator<T>* coefficients, cudaStream_t stream);

// grad: one value on the device. out is laid out as x.
template <typename T>
void bn_match_backward(const Accumulator<T>* grad, const T* x, const ChannelShape& shape,
                       const Accumulator<T>* coefficients, int multiprocessors, T* out, cudaStream_t stream);

}  // namespace exml::cuda
