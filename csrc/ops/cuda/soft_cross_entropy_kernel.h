// Launchers of the soft_cross_entropy kernels. T: float, double or BFloat16.
#pragma once

#include "math/bfloat16.h"
#include "ops/cuda/launch.h"

namespace exml::cuda {

// One of the two is given: class indices (rows,), or probabilities (rows, classes).
template <typename A>
struct Target {
  const int64_t* indices;
  const A* probabilities;
};

// Writes each row's loss and log-sum-exp of logits * scale. A class index out of range gives NaN.
template <typename T>
void soft_cross_entropy_forward(const T* logits, const Target<Accumulator<T>>& target, int64_t rows, int64_t classes,
                                Accumulator<T> scale, Accumulator<T>* losses, Accumulator<T>* lse, cudaStream_t stream);

// out = factor * grad * d loss / d (logits * scale). grad: one value, or one a row where grad_per_row.
template <typename T>
void soft_cross_entropy_backward(const Accumulator<T>* grad, bool grad_per_row, const T* logits,
                                 const Target<Accumulator<T>>& target, const Accumulator<T>* lse, int64_t rows,
                                 int64_t classes, Accumulator<T> scale, Accumulator<T> factor, T* out,
                                 cudaStream_t stream);

}  // namespace exml::cuda
