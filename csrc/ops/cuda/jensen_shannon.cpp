#include "ops/jensen_shannon.h"

#include "ops/backend.h"
#include "ops/cuda/jensen_shannon_kernel.h"
#include "ops/cuda/rows.h"

namespace exml {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(const JensenShannon& arguments) {
  const auto& [teacher_logits, student_logits, temperature, reduction] = arguments;
  const cuda::Context context(teacher_logits);
  const int64_t rows = teacher_logits.size(0), classes = teacher_logits.size(1);
  Tensor loss, teacher_lse, student_lse;
  dispatch_pixels(teacher_logits, [&](auto* teacher) {
    using T = PixelOf<decltype(teacher)>;
    using A = Accumulator<T>;
    const auto dtype = torch::headeronly::CppTypeToScalarType<A>::value;
    const Tensor losses = context.empty({rows}, dtype);
    teacher_lse = context.empty({rows}, dtype);
    student_lse = context.empty({rows}, dtype);
    cuda::jensen_shannon_forward(teacher, static_cast<const T*>(student_logits.const_data_ptr()), rows, classes,
                                 static_cast<A>(1 / temperature), losses.mutable_data_ptr<A>(),
                                 teacher_lse.mutable_data_ptr<A>(), student_lse.mutable_data_ptr<A>(),
                                 context.stream());
    loss = cuda::reduced_rows<A>(context, losses, reduction);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {loss, teacher_lse, student_lse};
}

Tensor backward(const JensenShannonBackward& arguments) {
  const auto& [grad, logits, other_logits, lse, other_lse, temperature, reduction] = arguments;
  const cuda::Context context(logits);
  const int64_t rows = logits.size(0), classes = logits.size(1);
  Tensor out = new_like(logits);
  dispatch_pixels(logits, [&](auto* z) {
    using T = PixelOf<decltype(z)>;
    using A = Accumulator<T>;
    cuda::jensen_shannon_backward(grad.const_data_ptr<A>(), reduction == Reduction::none, z,
                                  static_cast<const T*>(other_logits.const_data_ptr()), lse.const_data_ptr<A>(),
                                  other_lse.const_data_ptr<A>(), rows, classes, static_cast<A>(1 / temperature),
                                  static_cast<A>(row_share(reduction, rows) / temperature),
                                  static_cast<T*>(out.mutable_data_ptr()), context.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CUDA, m) {
  m.impl("_jensen_shannon_forward", checked<&jensen_shannon_arguments, &forward>);
  m.impl("_jensen_shannon_backward", checked<&jensen_shannon_backward_arguments, &backward>);
}

}  // namespace
}  // namespace exml
