// Launchers of soft_cross_entropy's CUDA kernels. T: float, double or BFloat16; A: its accumulator.
#pragma once

#include "math/bfloat16.h"
#include "ops/cuda/launch.h"

namespace exml::cuda {

// What rows are compared with: class indices, or soft targets (rows, classes). The other pointer is null.
template <typename A>
struct Target {
  const int64_t* indices;
  const A* soft;
};

// losses, lse: one value a row. An index out of range gives a NaN loss. total, if not null: their sum times `share`.
template <typename T>
void soft_cross_entropy_forward(const T* logits, Target<Accumulator<T>> target, int64_t rows, int64_t classes,
                                Accumulator<T> scale, Accumulator<T> share, Accumulator<T>* losses, Accumulator<T>* lse,
                                Accumulator<T>* total, cudaStream_t stream);

// grad: one value a row, or one for all where `per_row` is false; `share` multiplies it.
template <typename T>
void soft_cross_entropy_backward(const Accumulator<T>* grad, bool per_row, Accumulator<T> share, const T* logits,
                                 Target<Accumulator<T>> target, const Accumulator<T>* lse, int64_t rows,
                                 int64_t classes, Accumulator<T> scale, T* out, cudaStream_t stream);

}  // namespace exml::cuda
