#include "ops/bn_match.h"

#include <ATen/ops/empty_like.h>

#include "ops/cuda/bn_match_kernel.h"
#include "ops/cuda/context.h"

namespace exml {

using at::Tensor;

namespace {

cuda::ChannelShape shape_of(const ChannelLayout& layout) {
  return {layout.batch, layout.channels, layout.plane, layout.channels_last};
}

}  // namespace

std::tuple<Tensor, Tensor> bn_match_forward_cuda(const Tensor& x, const ChannelLayout& layout, const Tensor& mean,
                                                 const Tensor& var, Distance distance, Moment moment) {
  const cuda::Context context(x);
  Tensor loss = context.empty({}, mean.scalar_type());
  Tensor coefficients = context.empty({3, layout.channels}, mean.scalar_type());
  const auto shape = shape_of(layout);
  const int multiprocessors = context.multiprocessors();
  cuda::dispatch_pixels(x, [&](auto* pixels) {
    using A = Accumulator<cuda::PixelOf<decltype(pixels)>>;
    const Tensor workspace = context.workspace(cuda::bn_match_workspace(pixels, shape, multiprocessors));
    cuda::bn_match_forward(pixels, shape, mean.const_data_ptr<A>(), var.const_data_ptr<A>(), distance, moment,
                           multiprocessors, workspace.mutable_data_ptr(), loss.mutable_data_ptr<A>(),
                           coefficients.mutable_data_ptr<A>(), context.stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {loss, coefficients};
}

Tensor bn_match_backward_cuda(const Tensor& grad, const Tensor& x, const ChannelLayout& layout,
                              const Tensor& coefficients) {
  const cuda::Context context(x);
  Tensor out = at::empty_like(x);
  cuda::dispatch_pixels(x, [&](auto* pixels) {
    using T = cuda::PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    cuda::bn_match_backward(grad.const_data_ptr<A>(), pixels, shape_of(layout), coefficients.const_data_ptr<A>(),
                            context.multiprocessors(), static_cast<T*>(out.mutable_data_ptr()), context.stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace exml
