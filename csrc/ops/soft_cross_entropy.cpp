#include "ops/soft_cross_entropy.h"

#include <torch/library.h>

#include "ops/checks.h"

namespace exml {
namespace {

using at::Tensor;

void check(const Tensor& logits, const Tensor& target, double temperature) {
  check_pixels("soft_cross_entropy", "logits", logits);
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.numel() > 0,
                    "soft_cross_entropy: logits must have shape (N, K) and not be empty, got shape ", logits.sizes());
  if (target.is_floating_point()) {
    TORCH_CHECK_VALUE(target.sizes() == logits.sizes(), "soft_cross_entropy: soft target must have the logits' shape ",
                      logits.sizes(), ", got ", target.sizes());
  } else {
    TORCH_CHECK_VALUE(target.scalar_type() == at::kLong,
                      "soft_cross_entropy: target must be int64 class indices or floating point, got ",
                      target.scalar_type());
    TORCH_CHECK_VALUE(target.dim() == 1 && target.size(0) == logits.size(0),
                      "soft_cross_entropy: target indices must have shape (N,) = (", logits.size(0), ",), got ",
                      target.sizes());
  }
  check_device("soft_cross_entropy", "target", target, "logits", logits);
  check_temperature("soft_cross_entropy", temperature);
}

// Indices as they are, probabilities in the accumulator's dtype.
Tensor prepared(const Tensor& target, const Tensor& logits) {
  return (target.is_floating_point() ? target.to(accumulator_dtype(logits)) : target).contiguous();
}

}  // namespace

SoftCrossEntropy soft_cross_entropy_arguments(const Tensor& logits, const Tensor& target, double temperature,
                                              std::string_view reduction) {
  check(logits, target, temperature);
  return {logits.contiguous(), prepared(target, logits), temperature, reduction_from("soft_cross_entropy", reduction)};
}

SoftCrossEntropyBackward soft_cross_entropy_backward_arguments(const Tensor& grad, const Tensor& logits,
                                                               const Tensor& target, const Tensor& lse,
                                                               double temperature, std::string_view reduction) {
  check(logits, target, temperature);
  const Reduction reduced = reduction_from("soft_cross_entropy", reduction);
  const auto accumulator = accumulator_dtype(logits);
  return {
      checked_saved("soft_cross_entropy", "grad", grad, reduced_shape(reduced, logits.size(0)), accumulator, logits),
      logits.contiguous(),
      prepared(target, logits),
      checked_saved("soft_cross_entropy", "lse", lse, {logits.size(0)}, accumulator, logits),
      temperature,
      reduced};
}

TORCH_LIBRARY_FRAGMENT(exml, m) {
  m.def("soft_cross_entropy(Tensor logits, Tensor target, float temperature=1.0, str reduction='mean') -> Tensor");
  m.def(
      "_soft_cross_entropy_forward(Tensor logits, Tensor target, float temperature, str reduction) -> "
      "(Tensor loss, Tensor lse)");
  m.def(
      "_soft_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, Tensor lse, float temperature, "
      "str reduction) -> Tensor");
}

}  // namespace exml
