// Competition of a student with its teacher: one minus the Jensen-Shannon divergence of their softmaxes (Yin 2020,
// Eq. 8).
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "ops/reduction.h"

namespace exml {

// Both logits (N, K) contiguous, of one dtype. Returns the loss, (N,) or a scalar, and the log-sum-exps of
// teacher_logits / temperature and of student_logits / temperature (N,), all in the accumulator's dtype.
std::tuple<at::Tensor, at::Tensor, at::Tensor> jensen_shannon_forward_cpu(const at::Tensor& teacher_logits,
                                                                          const at::Tensor& student_logits,
                                                                          double temperature, Reduction reduction);
std::tuple<at::Tensor, at::Tensor, at::Tensor> jensen_shannon_forward_cuda(const at::Tensor& teacher_logits,
                                                                           const at::Tensor& student_logits,
                                                                           double temperature, Reduction reduction);

// The gradient of either logits, the divergence being symmetric. grad is a scalar, or (N,) contiguous where nothing was
// reduced.
at::Tensor jensen_shannon_backward_cpu(const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& other_logits,
                                       const at::Tensor& lse, const at::Tensor& other_lse, double temperature,
                                       Reduction reduction);
at::Tensor jensen_shannon_backward_cuda(const at::Tensor& grad, const at::Tensor& logits,
                                        const at::Tensor& other_logits, const at::Tensor& lse,
                                        const at::Tensor& other_lse, double temperature, Reduction reduction);

}  // namespace exml
