// Launchers of bn_match's CUDA kernels. T: float, double or BFloat16; A: its accumulator.
#pragma once

#include "math/bfloat16.h"
#include "math/moments.h"
#include "math/statistics_distance.h"
#include "ops/cuda/launch.h"

namespace exml::cuda {

struct BNMatchShape {
  int64_t batch, channels, plane;
  bool channels_last;  // rows of `channels` values; else planes of `plane` values

  int64_t count() const { return batch * plane; }
};

// How many partial results a channel the statistics are formed from, for about four blocks a multiprocessor.
int bn_match_splits(const BNMatchShape& shape, int multiprocessors);

// partial: splits * channels, coefficients: (3, C), PixelGradient by rows; loss: one value. All in device memory.
template <typename T>
void bn_match_forward(const T* x, const BNMatchShape& shape, const Accumulator<T>* mean, const Accumulator<T>* var,
                      Distance distance, Moment moment, int splits, Moments<Accumulator<T>>* partial,
                      Accumulator<T>* loss, Accumulator<T>* coefficients, cudaStream_t stream);

template <typename T>
void bn_match_backward(const Accumulator<T>* grad, const T* x, const BNMatchShape& shape,
                       const Accumulator<T>* coefficients, T* out, cudaStream_t stream);

}  // namespace exml::cuda
