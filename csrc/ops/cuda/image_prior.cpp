#include "ops/image_prior.h"

#include "ops/backend.h"
#include "ops/cuda/context.h"
#include "ops/cuda/image_prior_kernel.h"

namespace exml {
namespace {

cuda::Images images(const Tensor& x, const PriorShape& shape) {
  return {shape.images, shape.channels, shape.height, shape.width, !x.is_contiguous(), shape.per_image};
}

std::tuple<Tensor, Tensor> forward(const ImagePrior& arguments) {
  const auto& [x, shape, kernel_size, sigma] = arguments;
  const cuda::Context context(x);
  Tensor sums = context.empty({shape.groups(), kPriorSums}, ScalarType::Double), losses;
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    losses = context.empty(shape.losses(), torch::headeronly::CppTypeToScalarType<A>::value);
    const auto batch = images(x, shape);
    const Tensor workspace = context.workspace(cuda::image_prior_forward_workspace<T>(batch));
    cuda::image_prior_forward(pixels, batch, gaussian_window<A>(kernel_size, sigma), workspace.mutable_data_ptr(),
                              losses.mutable_data_ptr<A>(), sums.mutable_data_ptr<double>(), context.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {losses, sums};
}

Tensor backward(const ImagePriorBackward& arguments) {
  const auto& [op, grads, sums] = arguments;
  const auto& [x, shape, kernel_size, sigma] = op;
  const cuda::Context context(x);
  Tensor out = new_like(x);
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    const auto batch = images(x, shape);
    const Tensor workspace = context.workspace(cuda::image_prior_backward_workspace<T>(batch));
    cuda::image_prior_backward(grads.const_data_ptr<A>(), pixels, sums.const_data_ptr<double>(), batch,
                               gaussian_window<A>(kernel_size, sigma), workspace.mutable_data_ptr(),
                               static_cast<T*>(out.mutable_data_ptr()), context.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CUDA, m) {
  m.impl("_image_prior_forward", checked<&image_prior_arguments, &forward>);
  m.impl("_image_prior_backward", checked<&image_prior_backward_arguments, &backward>);
}

}  // namespace
}  // namespace exml
