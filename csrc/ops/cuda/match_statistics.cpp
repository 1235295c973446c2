#include "ops/match_statistics.h"

#include "ops/cuda/context.h"
#include "ops/cuda/match_statistics_kernel.h"

namespace exml {

using at::Tensor;

namespace {

template <typename A>
std::vector<cuda::StatisticsLayer<A>> pointers(const std::vector<MatchedLayer>& layers) {
  std::vector<cuda::StatisticsLayer<A>> result;
  result.reserve(layers.size());
  int offset = 0;
  for (const auto& layer : layers) {
    const int channels = static_cast<int>(layer.channels());
    result.push_back({layer.mean.const_data_ptr<A>(), layer.var.const_data_ptr<A>(),
                      layer.target_mean.const_data_ptr<A>(), layer.target_var.const_data_ptr<A>(), layer.weight,
                      channels, offset});
    offset += channels;
  }
  return result;
}

template <typename F>
void dispatch_statistics(const std::vector<MatchedLayer>& layers, F f) {
  if (layers[0].mean.scalar_type() == at::kDouble)
    f(pointers<double>(layers), double());
  else
    f(pointers<float>(layers), float());
}

}  // namespace

std::tuple<Tensor, Tensor> match_statistics_forward_cuda(const std::vector<MatchedLayer>& layers, Distance distance,
                                                         Moment moment) {
  const cuda::Context context(layers[0].mean);
  const int64_t count = static_cast<int64_t>(layers.size());
  Tensor loss = context.empty({}, layers[0].mean.scalar_type()), sums = context.empty({count, 2}, at::kDouble);
  dispatch_statistics(layers, [&](const auto& pointers, auto zero) {
    using A = decltype(zero);
    cuda::match_statistics_forward(pointers.data(), count, distance, moment, sums.mutable_data_ptr<double>(),
                                   loss.mutable_data_ptr<A>(), context.stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {loss, sums};
}

Tensor match_statistics_backward_cuda(const Tensor& grad, const std::vector<MatchedLayer>& layers, const Tensor& sums,
                                      Distance distance, Moment moment) {
  const cuda::Context context(layers[0].mean);
  int64_t channels = 0;
  for (const auto& layer : layers) channels += layer.channels();
  Tensor out = context.empty({2, channels}, layers[0].mean.scalar_type());
  dispatch_statistics(layers, [&](const auto& pointers, auto zero) {
    using A = decltype(zero);
    cuda::match_statistics_backward(grad.const_data_ptr<A>(), pointers.data(), static_cast<int64_t>(layers.size()),
                                    distance, moment, sums.const_data_ptr<double>(), channels,
                                    out.mutable_data_ptr<A>(), context.stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace exml
