// Competition of a student with its teacher: one minus the Jensen-Shannon divergence of their softmaxes (Yin 2020,
// Eq. 8).
#pragma once

#include <tuple>

#include "ops/reduction.h"
#include "ops/tensor.h"

namespace exml {

// The arguments of a forward kernel: both logits (N, K), contiguous, of one dtype. It returns the loss, (N,) or a
// scalar, and for both logits the log-sum-exp of (logits - the largest of the row) / temperature (N,), all in the
// accumulator's dtype.
struct JensenShannon {
  Tensor teacher_logits, student_logits;
  double temperature;
  Reduction reduction;
};

// The arguments of a backward kernel: grad, a scalar, or (N,) contiguous where nothing was reduced; logits as above,
// and their log-sum-exps. It returns the gradient of `logits`. These may be the teacher's or the student's, because the
// divergence is symmetric.
struct JensenShannonBackward {
  Tensor grad, logits, other_logits, lse, other_lse;
  double temperature;
  Reduction reduction;
};

// Checks the arguments of exml::_jensen_shannon_forward and _backward and lays them out for a kernel.
JensenShannon jensen_shannon_arguments(const Tensor& teacher_logits, const Tensor& student_logits, double temperature,
                                       std::string_view reduction);
JensenShannonBackward jensen_shannon_backward_arguments(const Tensor& grad, const Tensor& logits,
                                                        const Tensor& other_logits, const Tensor& lse,
                                                        const Tensor& other_lse, double temperature,
                                                        std::string_view reduction);

}  // namespace exml
