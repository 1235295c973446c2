#include "ops/jensen_shannon.h"

#include "ops/checks.h"
#include "ops/schema.h"

namespace exml {
namespace {

void check(const Tensor& teacher_logits, const Tensor& student_logits, double temperature) {
  check_pixels("jensen_shannon", "teacher_logits", teacher_logits);
  check_pixels("jensen_shannon", "student_logits", student_logits);
  EXML_CHECK_VALUE(teacher_logits.dim() == 2 && teacher_logits.numel() > 0,
                   "jensen_shannon: teacher_logits must have shape (N, K) and not be empty, got shape ",
                   teacher_logits.sizes());
  EXML_CHECK_VALUE(equal(student_logits.sizes(), teacher_logits.sizes()),
                   "jensen_shannon: student_logits must have teacher_logits' shape ", teacher_logits.sizes(), ", got ",
                   student_logits.sizes());
  EXML_CHECK_VALUE(student_logits.scalar_type() == teacher_logits.scalar_type(),
                   "jensen_shannon: student_logits must have teacher_logits' dtype ", teacher_logits.scalar_type(),
                   ", got ", student_logits.scalar_type());
  check_device("jensen_shannon", "student_logits", student_logits, "teacher_logits", teacher_logits);
  check_temperature("jensen_shannon", temperature);
}

}  // namespace

JensenShannon jensen_shannon_arguments(const Tensor& teacher_logits, const Tensor& student_logits, double temperature,
                                       std::string_view reduction) {
  check(teacher_logits, student_logits, temperature);
  return {as_contiguous(teacher_logits), as_contiguous(student_logits), temperature,
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
          as_contiguous(logits),
          as_contiguous(other_logits),
          checked_saved("jensen_shannon", "lse", lse, {logits.size(0)}, accumulator, logits),
          checked_saved("jensen_shannon", "other_lse", other_lse, {logits.size(0)}, accumulator, logits),
          temperature,
          reduced};
}

EXML_SCHEMAS(m) {
  m.def(
      "_jensen_shannon_forward(Tensor teacher_logits, Tensor student_logits, float temperature, str reduction) -> "
      "(Tensor loss, Tensor teacher_lse, Tensor student_lse)");
  m.def(
      "_jensen_shannon_backward(Tensor grad, Tensor logits, Tensor other_logits, Tensor lse, Tensor other_lse, "
      "float temperature, str reduction) -> Tensor");
}

}  // namespace exml
