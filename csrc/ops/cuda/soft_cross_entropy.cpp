#include "ops/soft_cross_entropy.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "ops/checks.h"
#include "ops/cuda/binding.h"
#include "ops/cuda/soft_cross_entropy_kernel.h"

namespace exml {
namespace {

using at::Tensor;

template <typename A>
cuda::Target<A> target_of(const Tensor& target) {
  if (target.is_floating_point()) return {nullptr, target.const_data_ptr<A>()};
  return {target.const_data_ptr<int64_t>(), nullptr};
}

// 1 / rows for the mean, 1 otherwise.
double share_of(Reduction reduction, int64_t rows) { return reduction == Reduction::mean ? 1.0 / double(rows) : 1.0; }

}  // namespace

std::tuple<Tensor, Tensor> soft_cross_entropy_forward_cuda(const Tensor& logits, const Tensor& target,
                                                           double temperature, Reduction reduction) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const int64_t rows = logits.size(0);
  const bool reduced = reduction != Reduction::none;
  const auto options = logits.options().dtype(accumulator_dtype(logits));
  Tensor lse = at::empty({rows}, options), losses = at::empty({rows}, options);
  Tensor total = reduced ? at::empty({}, options) : Tensor();
  dispatch_pixels(logits, [&](auto* z) {
    using A = Accumulator<PixelOf<decltype(z)>>;
    cuda::soft_cross_entropy_forward(z, target_of<A>(target), rows, logits.size(1), A(1 / temperature),
                                     A(share_of(reduction, rows)), losses.mutable_data_ptr<A>(),
                                     lse.mutable_data_ptr<A>(), reduced ? total.mutable_data_ptr<A>() : nullptr,
                                     current_stream(logits));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {reduced ? total : losses, lse};
}

Tensor soft_cross_entropy_backward_cuda(const Tensor& grad, const Tensor& logits, const Tensor& target,
                                        const Tensor& lse, double temperature, Reduction reduction) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const int64_t rows = logits.size(0);
  Tensor out = at::empty_like(logits);
  dispatch_pixels(logits, [&](auto* z) {
    using T = PixelOf<decltype(z)>;
    using A = Accumulator<T>;
    cuda::soft_cross_entropy_backward(grad.const_data_ptr<A>(), reduction == Reduction::none,
                                      A(share_of(reduction, rows) / temperature), z, target_of<A>(target),
                                      lse.const_data_ptr<A>(), rows, logits.size(1), A(1 / temperature),
                                      static_cast<T*>(out.mutable_data_ptr()), current_stream(logits));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace exml
