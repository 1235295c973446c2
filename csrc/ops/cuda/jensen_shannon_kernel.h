// Launchers of the jensen_shannon kernels. T: float, double or BFloat16. Both logits are (rows, classes).
#pragma once

#include "math/bfloat16.h"
#include "ops/cuda/launch.h"

namespace exml::cuda {

// Writes each row's loss and both log-sum-exps of logits * scale, all NaN where the divergence is.
template <typename T>
void jensen_shannon_forward(const T* teacher, const T* student, int64_t rows, int64_t classes, Accumulator<T> scale,
                            Accumulator<T>* losses, Accumulator<T>* teacher_lse, Accumulator<T>* student_lse,
                            cudaStream_t stream);

// out = factor * grad * d loss / d (logits * scale). grad: one value, or one a row where grad_per_row.
template <typename T>
void jensen_shannon_backward(const Accumulator<T>* grad, bool grad_per_row, const T* logits, const T* other,
                             const Accumulator<T>* lse, const Accumulator<T>* other_lse, int64_t rows, int64_t classes,
                             Accumulator<T> scale, Accumulator<T> factor, T* out, cudaStream_t stream);

}  // namespace exml::cuda
