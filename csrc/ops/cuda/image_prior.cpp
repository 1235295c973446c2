#include "ops/image_prior.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "ops/checks.h"
#include "ops/cuda/binding.h"
#include "ops/cuda/image_prior_kernel.h"

namespace exml {
namespace {

using at::Tensor;

cuda::Images images_of(const Tensor& x, const PriorShape& shape) {
  return {shape.images, shape.channels, shape.height, shape.width, x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

}  // namespace

std::tuple<Tensor, Tensor> image_prior_forward_cuda(const Tensor& x, const PriorShape& shape, int kernel_size,
                                                    double sigma) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto images = images_of(x, shape);
  const int64_t groups = shape.groups();
  const auto doubles = x.options().memory_format(std::nullopt).dtype(at::kDouble);
  Tensor sums = at::empty({groups, kPriorSums}, doubles);
  Tensor partial = at::empty({cuda::image_prior_blocks(images), kPriorSums}, doubles);
  Tensor losses = at::empty({kPriorLosses, groups}, doubles.dtype(accumulator_dtype(x)));
  dispatch_pixels(x, [&](auto* pixels) {
    using A = Accumulator<PixelOf<decltype(pixels)>>;
    cuda::image_prior_forward(pixels, images, groups, gaussian_window<A>(kernel_size, sigma),
                              partial.mutable_data_ptr<double>(), losses.mutable_data_ptr<A>(),
                              sums.mutable_data_ptr<double>(), current_stream(x));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {losses, sums};
}

Tensor image_prior_backward_cuda(const Tensor& grads, const Tensor& x, const Tensor& sums, const PriorShape& shape,
                                 int kernel_size, double sigma) {
  const c10::cuda::CUDAGuard guard(x.device());
  Tensor out = at::empty_like(x);
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    cuda::image_prior_backward(grads.const_data_ptr<A>(), pixels, sums.const_data_ptr<double>(), images_of(x, shape),
                               shape.groups(), gaussian_window<A>(kernel_size, sigma),
                               static_cast<T*>(out.mutable_data_ptr()), current_stream(x));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace exml
