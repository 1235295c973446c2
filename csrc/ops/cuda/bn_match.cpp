#include "ops/bn_match.h"

#include "ops/backend.h"
#include "ops/cuda/bn_match_kernel.h"
#include "ops/cuda/context.h"

namespace exml {
namespace {

cuda::ChannelShape shape_of(const ChannelLayout& layout) {
  return {layout.batch, layout.channels, layout.plane, layout.channels_last};
}

std::tuple<Tensor, Tensor> forward(const BNMatch& arguments) {
  const auto& [x, layout, mean, var, distance, moment] = arguments;
  const cuda::Context context(x);
  Tensor loss = context.empty({}, mean.scalar_type());
  Tensor coefficients = context.empty({3, layout.channels}, mean.scalar_type());
  const auto shape = shape_of(layout);
  const int multiprocessors = context.multiprocessors();
  dispatch_pixels(x, [&](auto* pixels) {
    using A = Accumulator<PixelOf<decltype(pixels)>>;
    const Tensor workspace = context.workspace(cuda::bn_match_workspace(pixels, shape, multiprocessors));
    cuda::bn_match_forward(pixels, shape, mean.const_data_ptr<A>(), var.const_data_ptr<A>(), distance, moment,
                           multiprocessors, workspace.mutable_data_ptr(), loss.mutable_data_ptr<A>(),
                           coefficients.mutable_data_ptr<A>(), context.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {loss, coefficients};
}

Tensor backward(const BNMatchBackward& arguments) {
  const auto& [grad, x, layout, coefficients] = arguments;
  const cuda::Context context(x);
  Tensor out = new_like(x);
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    cuda::bn_match_backward(grad.const_data_ptr<A>(), pixels, shape_of(layout), coefficients.const_data_ptr<A>(),
                            context.multiprocessors(), static_cast<T*>(out.mutable_data_ptr()), context.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CUDA, m) {
  m.impl("_bn_match_forward", checked<&bn_match_arguments, &forward>);
  m.impl("_bn_match_backward", checked<&bn_match_backward_arguments, &backward>);
}

}  // namespace
}  // namespace exml
