#include "ops/bn_match.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "ops/cuda/binding.h"
#include "ops/cuda/bn_match_kernel.h"

namespace exml {
namespace {

using at::Tensor;

cuda::BNMatchShape kernel_shape(const ChannelLayout& layout) {
  return {layout.batch, layout.channels, layout.plane, layout.channels_last};
}

int multiprocessors(const Tensor& x) {
  int count = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, x.get_device()));
  return count;
}

}  // namespace

std::tuple<Tensor, Tensor> bn_match_forward_cuda(const Tensor& x, const ChannelLayout& layout, const Tensor& mean,
                                                 const Tensor& var, Distance distance, Moment moment) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto shape = kernel_shape(layout);
  const int splits = cuda::bn_match_splits(shape, multiprocessors(x));
  Tensor loss = at::empty({}, mean.options()), coefficients = at::empty({3, layout.channels}, mean.options());
  Tensor partial = at::empty({splits, layout.channels, 3}, mean.options());
  dispatch_pixels(x, [&](auto* pixels) {
    using A = Accumulator<PixelOf<decltype(pixels)>>;
    static_assert(sizeof(Moments<A>) == 3 * sizeof(A));
    cuda::bn_match_forward(pixels, shape, mean.const_data_ptr<A>(), var.const_data_ptr<A>(), distance, moment, splits,
                           static_cast<Moments<A>*>(partial.mutable_data_ptr()), loss.mutable_data_ptr<A>(),
                           coefficients.mutable_data_ptr<A>(), current_stream(x));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {loss, coefficients};
}

Tensor bn_match_backward_cuda(const Tensor& grad, const Tensor& x, const ChannelLayout& layout,
                              const Tensor& coefficients) {
  const c10::cuda::CUDAGuard guard(x.device());
  Tensor out = at::empty_like(x);
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    cuda::bn_match_backward(grad.const_data_ptr<A>(), pixels, kernel_shape(layout), coefficients.const_data_ptr<A>(),
                            static_cast<T*>(out.mutable_data_ptr()), current_stream(x));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace exml
