#include "ops/image_prior.h"

#include <ATen/ops/empty_like.h>

#include "ops/cuda/context.h"
#include "ops/cuda/image_prior_kernel.h"

namespace exml {

using at::Tensor;

namespace {

cuda::Images images(const Tensor& x, const PriorShape& shape) {
  return {shape.images, shape.channels, shape.height, shape.width, !x.is_contiguous(), shape.per_image};
}

}  // namespace

std::tuple<Tensor, Tensor> image_prior_forward_cuda(const Tensor& x, const PriorShape& shape, int kernel_size,
                                                    double sigma) {
  const cuda::Context context(x);
  Tensor sums = context.empty({shape.groups(), kPriorSums}, at::kDouble), losses;
  cuda::dispatch_pixels(x, [&](auto* pixels) {
    using T = cuda::PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    losses = context.empty({kPriorLosses, shape.groups()}, c10::CppTypeToScalarType<A>::value);
    const auto batch = images(x, shape);
    const Tensor workspace = context.workspace(cuda::image_prior_forward_workspace<T>(batch));
    cuda::image_prior_forward(pixels, batch, gaussian_window<A>(kernel_size, sigma), workspace.mutable_data_ptr(),
                              losses.mutable_data_ptr<A>(), sums.mutable_data_ptr<double>(), context.stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {losses, sums};
}

Tensor image_prior_backward_cuda(const Tensor& grads, const Tensor& x, const Tensor& sums, const PriorShape& shape,
                                 int kernel_size, double sigma) {
  const cuda::Context context(x);
  Tensor out = at::empty_like(x);
  cuda::dispatch_pixels(x, [&](auto* pixels) {
    using T = cuda::PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    const auto batch = images(x, shape);
    const Tensor workspace = context.workspace(cuda::image_prior_backward_workspace<T>(batch));
    cuda::image_prior_backward(grads.const_data_ptr<A>(), pixels, sums.const_data_ptr<double>(), batch,
                               gaussian_window<A>(kernel_size, sigma), workspace.mutable_data_ptr(),
                               static_cast<T*>(out.mutable_data_ptr()), context.stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace exml
