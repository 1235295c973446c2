// Temperature-softened cross-entropy with class indices or soft targets (Nayak 2021, Eq. 2).
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "ops/reduction.h"

namespace exml {

// logits (N, K) contiguous; target (N,) int64, or (N, K) contiguous in the accumulator's dtype. Returns the loss, (N,)
// or a scalar, and the log-sum-exp of logits / temperature (N,), both in the accumulator's dtype.
std::tuple<at::Tensor, at::Tensor> soft_cross_entropy_forward_cpu(const at::Tensor& logits, const at::Tensor& target,
                                                                  double temperature, Reduction reduction);
std::tuple<at::Tensor, at::Tensor> soft_cross_entropy_forward_cuda(const at::Tensor& logits, const at::Tensor& target,
                                                                   double temperature, Reduction reduction);

// grad is a scalar, or (N,) contiguous where nothing was reduced.
at::Tensor soft_cross_entropy_backward_cpu(const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& target,
                                           const at::Tensor& lse, double temperature, Reduction reduction);
at::Tensor soft_cross_entropy_backward_cuda(const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& target,
                                            const at::Tensor& lse, double temperature, Reduction reduction);

}  // namespace exml
