#include "ops/frozen_bn_act.h"

#include "ops/backend.h"
#include "ops/cuda/context.h"
#include "ops/cuda/frozen_bn_act_kernel.h"

namespace exml {
namespace {

cuda::ChannelShape shape_of(const ChannelLayout& layout) {
  return {layout.batch, layout.channels, layout.plane, layout.channels_last};
}

template <typename T>
cuda::FrozenNorm<T> norm_of(const FrozenBNAct& op) {
  using A = Accumulator<T>;
  return {op.scale.const_data_ptr<A>(), op.shift.const_data_ptr<A>(), values_or_null<T>(op.residual), op.activation,
          static_cast<A>(op.negative_slope)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const FrozenBNAct& op) {
  const Tensor& x = op.x;
  const ChannelLayout& layout = op.layout;
  const cuda::Context context(x);
  Tensor y = new_like(x), mask = new_mask(op);
  Tensor mean = context.empty({layout.channels}, op.scale.scalar_type()), var = new_like(mean);
  const auto shape = shape_of(layout);
  const int multiprocessors = context.multiprocessors();
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    const auto norm = norm_of<T>(op);
    T* out = static_cast<T*>(y.mutable_data_ptr());
    const Tensor workspace =
        context.workspace(cuda::frozen_bn_act_workspace<T>(pixels, norm, shape, out, multiprocessors));
    cuda::frozen_bn_act_forward(pixels, norm, shape, multiprocessors, workspace.mutable_data_ptr(), out,
                                mean.mutable_data_ptr<A>(), var.mutable_data_ptr<A>(),
                                op.with_mask ? mask.mutable_data_ptr<uint8_t>() : nullptr, context.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {y, mean, var, mask};
}

std::vector<Tensor> backward(const FrozenBNActBackward& arguments) {
  const auto& [op, grad_y, grad_mean, grad_var, mean, mask, with_residual] = arguments;
  const Tensor& x = op.x;
  const cuda::Context context(x);
  std::vector<Tensor> results{new_like(x)};
  if (with_residual) results.push_back(new_like(x));
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    const cuda::FrozenNormGrads<T> arriving{values_or_null<T>(grad_y), values_or_null<A>(grad_mean),
                                            values_or_null<A>(grad_var), mean.const_data_ptr<A>(),
                                            values_or_null<uint8_t>(mask)};
    cuda::frozen_bn_act_backward(arriving, pixels, norm_of<T>(op), shape_of(op.layout), context.multiprocessors(),
                                 static_cast<T*>(results[0].mutable_data_ptr()),
                                 with_residual ? static_cast<T*>(results[1].mutable_data_ptr()) : nullptr,
                                 context.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return results;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CUDA, m) {
  m.impl("_frozen_bn_act_forward", checked<&frozen_bn_act_arguments, &forward>);
  m.impl("_frozen_bn_act_backward", checked<&frozen_bn_act_backward_arguments, &backward>);
}

}  // namespace
}  // namespace exml
