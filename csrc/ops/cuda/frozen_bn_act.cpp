#include "ops/frozen_bn_act.h"

#include <ATen/ops/empty_like.h>

#include "ops/cuda/context.h"
#include "ops/cuda/frozen_bn_act_kernel.h"

namespace exml {

using at::Tensor;

namespace {

template <typename T>
const T* data_or_null(const Tensor& t) {
  return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
}

cuda::ChannelShape shape_of(const ChannelLayout& layout) {
  return {layout.batch, layout.channels, layout.plane, layout.channels_last};
}

template <typename T>
cuda::FrozenNorm<T> norm_of(const FrozenBNAct& op) {
  using A = Accumulator<T>;
  return {op.scale.const_data_ptr<A>(), op.shift.const_data_ptr<A>(), data_or_null<T>(op.residual), op.activation,
          static_cast<A>(op.negative_slope)};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> frozen_bn_act_forward_cuda(const Tensor& x, const ChannelLayout& layout,
                                                              const FrozenBNAct& op) {
  const cuda::Context context(x);
  Tensor y = at::empty_like(x);
  Tensor mean = context.empty({layout.channels}, op.scale.scalar_type()), var = at::empty_like(mean);
  const auto shape = shape_of(layout);
  const int multiprocessors = context.multiprocessors();
  cuda::dispatch_pixels(x, [&](auto* pixels) {
    using T = cuda::PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    const auto norm = norm_of<T>(op);
    T* out = static_cast<T*>(y.mutable_data_ptr());
    const Tensor workspace =
        context.workspace(cuda::frozen_bn_act_workspace<T>(pixels, norm, shape, out, multiprocessors));
    cuda::frozen_bn_act_forward(pixels, norm, shape, multiprocessors, workspace.mutable_data_ptr(), out,
                                mean.mutable_data_ptr<A>(), var.mutable_data_ptr<A>(), context.stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {y, mean, var};
}

std::vector<Tensor> frozen_bn_act_backward_cuda(const FrozenBNActGrads& grads, const Tensor& x,
                                                const ChannelLayout& layout, const FrozenBNAct& op, const Tensor& mean,
                                                bool with_residual) {
  const cuda::Context context(x);
  std::vector<Tensor> results{at::empty_like(x)};
  if (with_residual) results.push_back(at::empty_like(x));
  cuda::dispatch_pixels(x, [&](auto* pixels) {
    using T = cuda::PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    const cuda::FrozenNormGrads<T> arriving{data_or_null<T>(grads.y), data_or_null<A>(grads.mean),
                                            data_or_null<A>(grads.var), mean.const_data_ptr<A>()};
    cuda::frozen_bn_act_backward(arriving, pixels, norm_of<T>(op), shape_of(layout), context.multiprocessors(),
                                 static_cast<T*>(results[0].mutable_data_ptr()),
                                 with_residual ? static_cast<T*>(results[1].mutable_data_ptr()) : nullptr,
                                 context.stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return results;
}

}  // namespace exml
