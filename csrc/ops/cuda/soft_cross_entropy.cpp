#include "ops/soft_cross_entropy.h"

#include "ops/backend.h"
#include "ops/cuda/rows.h"
#include "ops/cuda/soft_cross_entropy_kernel.h"

namespace exml {
namespace {

template <typename A>
cuda::Target<A> target_of(const Tensor& target) {
  if (is_floating_point(target)) return {nullptr, target.const_data_ptr<A>()};
  return {target.const_data_ptr<int64_t>(), nullptr};
}

std::tuple<Tensor, Tensor> forward(const SoftCrossEntropy& arguments) {
  const auto& [logits, target, temperature, reduction] = arguments;
  const cuda::Context context(logits);
  const int64_t rows = logits.size(0), classes = logits.size(1);
  Tensor loss, lse;
  dispatch_pixels(logits, [&](auto* z) {
    using A = Accumulator<PixelOf<decltype(z)>>;
    const auto dtype = torch::headeronly::CppTypeToScalarType<A>::value;
    const Tensor losses = context.empty({rows}, dtype);
    lse = context.empty({rows}, dtype);
    cuda::soft_cross_entropy_forward(z, target_of<A>(target), rows, classes, static_cast<A>(1 / temperature),
                                     losses.mutable_data_ptr<A>(), lse.mutable_data_ptr<A>(), context.stream());
    loss = cuda::reduced_rows<A>(context, losses, reduction);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {loss, lse};
}

Tensor backward(const SoftCrossEntropyBackward& arguments) {
  const auto& [grad, logits, target, lse, temperature, reduction] = arguments;
  const cuda::Context context(logits);
  const int64_t rows = logits.size(0), classes = logits.size(1);
  Tensor out = new_like(logits);
  dispatch_pixels(logits, [&](auto* z) {
    using T = PixelOf<decltype(z)>;
    using A = Accumulator<T>;
    cuda::soft_cross_entropy_backward(grad.const_data_ptr<A>(), reduction == Reduction::none, z, target_of<A>(target),
                                      lse.const_data_ptr<A>(), rows, classes, static_cast<A>(1 / temperature),
                                      static_cast<A>(row_share(reduction, rows) / temperature),
                                      static_cast<T*>(out.mutable_data_ptr()), context.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CUDA, m) {
  m.impl("_soft_cross_entropy_forward", checked<&soft_cross_entropy_arguments, &forward>);
  m.impl("_soft_cross_entropy_backward", checked<&soft_cross_entropy_backward_arguments, &backward>);
}

}  // namespace
}  // namespace exml
