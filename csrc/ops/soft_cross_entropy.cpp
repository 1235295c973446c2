#include "ops/soft_cross_entropy.h"

#include "ops/checks.h"
#include "ops/schema.h"

namespace exml {
namespace {

void check(const Tensor& logits, const Tensor& target, double temperature) {
  check_pixels("soft_cross_entropy", "logits", logits);
  EXML_CHECK_VALUE(logits.dim() == 2 && logits.numel() > 0,
                   "soft_cross_entropy: logits must have shape (N, K) and not be empty, got shape ", logits.sizes());
  if (is_floating_point(target)) {
    EXML_CHECK_VALUE(equal(target.sizes(), logits.sizes()),
                     "soft_cross_entropy: soft target must have the logits' shape ", logits.sizes(), ", got ",
                     target.sizes());
  } else {
    EXML_CHECK_VALUE(target.scalar_type() == ScalarType::Long,
                     "soft_cross_entropy: target must be int64 class indices or floating point, got ",
                     target.scalar_type());
    EXML_CHECK_VALUE(target.dim() == 1 && target.size(0) == logits.size(0),
                     "soft_cross_entropy: target indices must have shape (N,) = (", logits.size(0), ",), got ",
                     target.sizes());
  }
  check_device("soft_cross_entropy", "target", target, "logits", logits);
  check_temperature("soft_cross_entropy", temperature);
}

// Indices as they are, probabilities in the accumulator's dtype.
Tensor prepared(const Tensor& target, const Tensor& logits) {
  return as_contiguous(is_floating_point(target) ? as_type(target, accumulator_dtype(logits)) : target);
}

}  // namespace

SoftCrossEntropy soft_cross_entropy_arguments(const Tensor& logits, const Tensor& target, double temperature,
                                              std::string_view reduction) {
  check(logits, target, temperature);
  return {as_contiguous(logits), prepared(target, logits), temperature,
          reduction_from("soft_cross_entropy", reduction)};
}

SoftCrossEntropyBackward soft_cross_entropy_backward_arguments(const Tensor& grad, const Tensor& logits,
                                                               const Tensor& target, const Tensor& lse,
                                                               double temperature, std::string_view reduction) {
  check(logits, target, temperature);
  const Reduction reduced = reduction_from("soft_cross_entropy", reduction);
  const auto accumulator = accumulator_dtype(logits);
  return {
      checked_saved("soft_cross_entropy", "grad", grad, reduced_shape(reduced, logits.size(0)), accumulator, logits),
      as_contiguous(logits),
      prepared(target, logits),
      checked_saved("soft_cross_entropy", "lse", lse, {logits.size(0)}, accumulator, logits),
      temperature,
      reduced};
}

EXML_SCHEMAS(m) {
  m.def(
      "_soft_cross_entropy_forward(Tensor logits, Tensor target, float temperature, str reduction) -> "
      "(Tensor loss, Tensor lse)");
  m.def(
      "_soft_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, Tensor lse, float temperature, "
      "str reduction) -> Tensor");
}

}  // namespace exml
