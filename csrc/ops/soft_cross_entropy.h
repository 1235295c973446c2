// Temperature-softened cross-entropy with class indices or soft targets (Nayak 2021, Eq. 2).
#pragma once

#include <tuple>

#include "ops/reduction.h"
#include "ops/tensor.h"

namespace exml {

// The arguments of a forward kernel: logits (N, K), contiguous; target (N,) int64, or (N, K) in the accumulator's
// dtype, contiguous. It returns the loss, (N,) or a scalar, and the log-sum-exp of (logits - the largest of the row) /
// temperature (N,), both in the accumulator's dtype.
struct SoftCrossEntropy {
  Tensor logits, target;
  double temperature;
  Reduction reduction;
};

// The arguments of a backward kernel: grad, a scalar, or (N,) contiguous where nothing was reduced, and the log-sum-exp
// of the forward pass. It returns the gradient of the logits.
struct SoftCrossEntropyBackward {
  Tensor grad, logits, target, lse;
  double temperature;
  Reduction reduction;
};

// Checks the arguments of exml::_soft_cross_entropy_forward and _backward and lays them out for a kernel.
SoftCrossEntropy soft_cross_entropy_arguments(const Tensor& logits, const Tensor& target, double temperature,
                                              std::string_view reduction);
SoftCrossEntropyBackward soft_cross_entropy_backward_arguments(const Tensor& grad, const Tensor& logits,
                                                               const Tensor& target, const Tensor& lse,
                                                               double temperature, std::string_view reduction);

}  // namespace exml
