#include "ops/soft_cross_entropy.h"

#include <ATen/ops/empty_like.h>

#include "ops/cuda/rows.h"
#include "ops/cuda/soft_cross_entropy_kernel.h"

namespace exml {

using at::Tensor;

namespace {

template <typename A>
cuda::Target<A> target_of(const Tensor& target) {
  if (target.is_floating_point()) return {nullptr, target.const_data_ptr<A>()};
  return {target.const_data_ptr<int64_t>(), nullptr};
}

}  // namespace

std::tuple<Tensor, Tensor> soft_cross_entropy_forward_cuda(const Tensor& logits, const Tensor& target,
                                                           double temperature, Reduction reduction) {
  const cuda::Context context(logits);
  const int64_t rows = logits.size(0), classes = logits.size(1);
  Tensor loss, lse;
  cuda::dispatch_pixels(logits, [&](auto* z) {
    using A = Accumulator<cuda::PixelOf<decltype(z)>>;
    const auto dtype = c10::CppTypeToScalarType<A>::value;
    const Tensor losses = context.empty({rows}, dtype);
    lse = context.empty({rows}, dtype);
    cuda::soft_cross_entropy_forward(z, target_of<A>(target), rows, classes, static_cast<A>(1 / temperature),
                                     losses.mutable_data_ptr<A>(), lse.mutable_data_ptr<A>(), context.stream());
    loss = cuda::reduced_rows<A>(context, losses, reduction);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {loss, lse};
}

Tensor soft_cross_entropy_backward_cuda(const Tensor& grad, const Tensor& logits, const Tensor& target,
                                        const Tensor& lse, double temperature, Reduction reduction) {
  const cuda::Context context(logits);
  const int64_t rows = logits.size(0), classes = logits.size(1);
  Tensor out = at::empty_like(logits);
  cuda::dispatch_pixels(logits, [&](auto* z) {
    using T = cuda::PixelOf<decltype(z)>;
    using A = Accumulator<T>;
    cuda::soft_cross_entropy_backward(grad.const_data_ptr<A>(), reduction == Reduction::none, z, target_of<A>(target),
                                      lse.const_data_ptr<A>(), rows, classes, static_cast<A>(1 / temperature),
                                      static_cast<A>(row_share(reduction, rows) / temperature),
                                      static_cast<T*>(out.mutable_data_ptr()), context.stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace exml
