#include "ops/match_statistics.h"

#include "ops/backend.h"
#include "ops/cuda/context.h"
#include "ops/cuda/match_statistics_kernel.h"

namespace exml {
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

std::tuple<Tensor, Tensor> forward(const MatchStatistics& arguments) {
  const auto& [layers, distance, moment] = arguments;
  const cuda::Context context(layers[0].mean);
  const int64_t count = static_cast<int64_t>(layers.size());
  Tensor loss = context.empty({}, layers[0].mean.scalar_type()), sums = context.empty({count, 2}, ScalarType::Double);
  dispatch_statistics(layers[0].mean, [&](auto* first) {
    using A = PixelOf<decltype(first)>;
    cuda::match_statistics_forward(pointers<A>(layers).data(), count, distance, moment, sums.mutable_data_ptr<double>(),
                                   loss.mutable_data_ptr<A>(), context.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {loss, sums};
}

Tensor backward(const MatchStatisticsBackward& arguments) {
  const auto& [grad, op, sums] = arguments;
  const auto& [layers, distance, moment] = op;
  const cuda::Context context(layers[0].mean);
  int64_t channels = 0;
  for (const auto& layer : layers) channels += layer.channels();
  Tensor out = context.empty({2, channels}, layers[0].mean.scalar_type());
  dispatch_statistics(layers[0].mean, [&](auto* first) {
    using A = PixelOf<decltype(first)>;
    cuda::match_statistics_backward(
        grad.const_data_ptr<A>(), pointers<A>(layers).data(), static_cast<int64_t>(layers.size()), distance, moment,
        sums.const_data_ptr<double>(), channels, out.mutable_data_ptr<A>(), context.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CUDA, m) {
  m.impl("_match_statistics_forward", checked<&match_statistics_arguments, &forward>);
  m.impl("_match_statistics_backward", checked<&match_statistics_backward_arguments, &backward>);
}

}  // namespace
}  // namespace exml
