#include "math/jensen_shannon.h"
#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/cpu/rows.h"
#include "ops/dispatch.h"
#include "ops/jensen_shannon.h"

#define EXML_SIMD_SOURCE "ops/cpu/jensen_shannon_simd.h"
#include "ops/cpu/for_each_capability.h"

namespace exml {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(const JensenShannon& arguments) {
  const auto& [teacher_logits, student_logits, temperature, reduction] = arguments;
  const int64_t rows = teacher_logits.size(0), classes = teacher_logits.size(1);
  const ScalarType dtype = accumulator_dtype(teacher_logits);
  Tensor losses = empty({rows}, dtype, teacher_logits), teacher_lse = new_like(losses), student_lse = new_like(losses),
         loss;
  dispatch_pixels(teacher_logits, [&](auto* teacher) {
    using T = PixelOf<decltype(teacher)>;
    using A = Accumulator<T>;
    const T* student = static_cast<const T*>(student_logits.const_data_ptr());
    const A scale = static_cast<A>(1 / temperature);
    A *row_losses = losses.mutable_data_ptr<A>(), *teacher_lses = teacher_lse.mutable_data_ptr<A>(),
      *student_lses = student_lse.mutable_data_ptr<A>();
    parallel_for(0, rows, row_grain(classes), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T *p = teacher + n * classes, *q = student + n * classes;
        A p_lse, q_lse;
        const A js = EXML_CPU_CALL(row_divergence, p, q, classes, scale, &p_lse, &q_lse);
        row_losses[n] = A(1) - js;
        // A row whose divergence is NaN must have a gradient of NaN too.
        teacher_lses[n] = js == js ? p_lse : js;
        student_lses[n] = js == js ? q_lse : js;
      }
    });
    loss = reduced_rows<A>(losses, reduction);
  });
  return {loss, teacher_lse, student_lse};
}

Tensor backward(const JensenShannonBackward& arguments) {
  const auto& [grad, logits, other_logits, lse, other_lse, temperature, reduction] = arguments;
  const int64_t rows = logits.size(0), classes = logits.size(1);
  Tensor out = new_like(logits);
  dispatch_pixels(logits, [&](auto* p) {
    using T = PixelOf<decltype(p)>;
    using A = Accumulator<T>;
    const T* q = static_cast<const T*>(other_logits.const_data_ptr());
    const A scale = static_cast<A>(1 / temperature);
    const A share = static_cast<A>(row_share(reduction, rows) / temperature);
    const A *pulls = grad.const_data_ptr<A>(), *p_lses = lse.const_data_ptr<A>(),
            *q_lses = other_lse.const_data_ptr<A>();
    T* result = static_cast<T*>(out.mutable_data_ptr());
    parallel_for(0, rows, row_grain(classes), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t start = n * classes;
        const A pull = share * pulls[reduction == Reduction::none ? n : 0];
        EXML_CPU_CALL(row_divergence_gradient, p + start, q + start, classes, scale, p_lses[n], q_lses[n], pull,
                      result + start);
      }
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CPU, m) {
  m.impl("_jensen_shannon_forward", checked<&jensen_shannon_arguments, &forward>);
  m.impl("_jensen_shannon_backward", checked<&jensen_shannon_backward_arguments, &backward>);
}

}  // namespace
}  // namespace exml
