#include "ops/jensen_shannon.h"

#include <torch/library.h>

#include "ops/checks.h"

namespace exml {
namespace {

using at::Tensor;

void check(const Tensor& teacher_logits, const Tensor& student_logits, double temperature) {
  check_pixels("jensen_shannon", "teacher_logits", teacher_logits);
  check_pixels("jensen_shannon", "student_logits", student_logits);
  TORCH_CHECK_VALUE(teacher_logits.dim() == 2 && teacher_logits.numel() > 0,
                    "jensen_shannon: teacher_logits must have shape (N, K) and not be empty, got shape ",
                    teacher_logits.sizes());
  TORCH_CHECK_VALUE(student_logits.sizes() == teacher_logits.sizes(),
                    "jensen_shannon: student_logits must have teacher_logits' shape ", teacher_logits.sizes(), ", got ",
                    student_logits.sizes());
  TORCH_CHECK_VALUE(student_logits.scalar_type() == teacher_logits.scalar_type(),
                    "jensen_shannon: student_logits must have teacher_logits' dtype ", teacher_logits.scalar_type(),
                    ", got ", student_logits.scalar_type());
  check_device("jensen_shannon", "student_logits", student_logits, "teacher_logits", teacher_logits);
  check_temperature("jensen_shannon", temperature);
}

}  // namespace

JensenShannon jensen_shannon_arguments(const Tensor& teacher_logits, const Tensor& student_logits, double temperature,
                                       std::string_view reduction) {
  check(teacher_logits, student_logits, temperature);
  return {teacher_logits.contiguous(), student_logits.contiguous(), temperature,
          reduction_from("jensen_shannon", reduction)};
}

JensenShannonBackward jensen_shannon_backward_arguments(const Tensor& grad, const Tensor& logits,
                                                        const Tensor& other_logits, const Tensor& lse,
                                                        const Tensor& other_lse, double temperature,
                                                        std::string_view reduction) {
  check(logits, other_logits, temperature);
  const Reduction reduced = reduction_from("jensen_shannon", reduction);
  const auto accumulator = accumulator_dtype(logits);
  return {checked_saved("jensen_shannon", "grad", grad, reduced_shape(reduced, logits.size(0)), accumulator, logits),
          logits.contiguous(),
          other_logits.contiguous(),
          checked_saved("jensen_shannon", "lse", lse, {logits.size(0)}, accumulator, logits),
          checked_saved("jensen_shannon", "other_lse", other_lse, {logits.size(0)}, accumulator, logits),
          temperature,
          reduced};
}

TORCH_LIBRARY_FRAGMENT(exml, m) {
  m.def(
      "jensen_shannon(Tensor teacher_logits, Tensor student_logits, float temperature=1.0, str reduction='mean') -> "
      "Tensor");
  m.def(
      "_jensen_shannon_forward(Tensor teacher_logits, Tensor student_logits, float temperature, str reduction) -> "
      "(Tensor loss, Tensor teacher_lse, Tensor student_lse)");
  m.def(
      "_jensen_shannon_backward(Tensor grad, Tensor logits, Tensor other_logits, Tensor lse, Tensor other_lse, "
      "float temperature, str reduction) -> Tensor");
}

}  // namespace exml
