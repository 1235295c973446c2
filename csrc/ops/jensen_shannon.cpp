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

template <typename Forward>
std::tuple<Tensor, Tensor, Tensor> checked_forward(Forward forward, const Tensor& teacher_logits,
                                                   const Tensor& student_logits, double temperature,
                                                   std::string_view reduction) {
  check(teacher_logits, student_logits, temperature);
  return forward(teacher_logits.contiguous(), student_logits.contiguous(), temperature,
                 reduction_from("jensen_shannon", reduction));
}

template <typename Backward>
Tensor checked_backward(Backward backward, const Tensor& grad, const Tensor& logits, const Tensor& other_logits,
                        const Tensor& lse, const Tensor& other_lse, double temperature, std::string_view reduction) {
  return backward(grad.contiguous(), logits.contiguous(), other_logits.contiguous(), lse, other_lse, temperature,
                  reduction_from("jensen_shannon", reduction));
}

std::tuple<Tensor, Tensor, Tensor> forward_cpu(const Tensor& teacher_logits, const Tensor& student_logits,
                                               double temperature, std::string_view reduction) {
  return checked_forward(jensen_shannon_forward_cpu, teacher_logits, student_logits, temperature, reduction);
}
Tensor backward_cpu(const Tensor& grad, const Tensor& logits, const Tensor& other_logits, const Tensor& lse,
                    const Tensor& other_lse, double temperature, std::string_view reduction) {
  return checked_backward(jensen_shannon_backward_cpu, grad, logits, other_logits, lse, other_lse, temperature,
                          reduction);
}
#ifdef EXML_WITH_CUDA
std::tuple<Tensor, Tensor, Tensor> forward_cuda(const Tensor& teacher_logits, const Tensor& student_logits,
                                                double temperature, std::string_view reduction) {
  return checked_forward(jensen_shannon_forward_cuda, teacher_logits, student_logits, temperature, reduction);
}
Tensor backward_cuda(const Tensor& grad, const Tensor& logits, const Tensor& other_logits, const Tensor& lse,
                     const Tensor& other_lse, double temperature, std::string_view reduction) {
  return checked_backward(jensen_shannon_backward_cuda, grad, logits, other_logits, lse, other_lse, temperature,
                          reduction);
}
#endif

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

TORCH_LIBRARY_IMPL(exml, CPU, m) {
  m.impl("_jensen_shannon_forward", &forward_cpu);
  m.impl("_jensen_shannon_backward", &backward_cpu);
}
#ifdef EXML_WITH_CUDA
TORCH_LIBRARY_IMPL(exml, CUDA, m) {
  m.impl("_jensen_shannon_forward", &forward_cuda);
  m.impl("_jensen_shannon_backward", &backward_cuda);
}
#endif

}  // namespace
}  // namespace exml
