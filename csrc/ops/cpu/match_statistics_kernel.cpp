#include "ops/backend.h"
#include "ops/dispatch.h"
#include "ops/match_statistics.h"

namespace exml {
namespace {

// Calls f(statistics, target) for every channel of a layer, all in double.
template <typename A, typename F>
void along_channels(const MatchedLayer& layer, F f) {
  const A *mean = layer.mean.const_data_ptr<A>(), *var = layer.var.const_data_ptr<A>();
  const A *target_mean = layer.target_mean.const_data_ptr<A>(), *target_var = layer.target_var.const_data_ptr<A>();
  for (int64_t c = 0; c < layer.channels(); ++c)
    f(ChannelStatistics<double>{mean[c], var[c]}, ChannelStatistics<double>{target_mean[c], target_var[c]});
}

std::tuple<Tensor, Tensor> forward(const MatchStatistics& arguments) {
  const auto& [layers, distance, moment] = arguments;
  const Tensor& first_mean = layers[0].mean;
  Tensor loss = empty({}, first_mean.scalar_type(), first_mean);
  Tensor sums = empty({static_cast<int64_t>(layers.size()), 2}, ScalarType::Double, first_mean);
  dispatch_statistics(layers[0].mean, [&](auto* first) {
    using A = PixelOf<decltype(first)>;
    double* row = sums.mutable_data_ptr<double>();
    double total = 0;
    for (const auto& layer : layers) {
      DistanceSums<double> sum;
      along_channels<A>(layer, [&](const auto& statistics, const auto& target) {
        const auto term = channel_distance(distance, moment, statistics, target);
        sum.mean += term.mean;
        sum.moment += term.moment;
      });
      *row++ = sum.mean;
      *row++ = sum.moment;
      total += layer.weight * distance_loss(distance, sum);
    }
    *loss.mutable_data_ptr<A>() = static_cast<A>(total);
  });
  return {loss, sums};
}

Tensor backward(const MatchStatisticsBackward& arguments) {
  const auto& [grad, op, sums] = arguments;
  const auto& [layers, distance, moment] = op;
  int64_t channels = 0;
  for (const auto& layer : layers) channels += layer.channels();
  Tensor out = empty({2, channels}, layers[0].mean.scalar_type(), layers[0].mean);
  dispatch_statistics(layers[0].mean, [&](auto* first) {
    using A = PixelOf<decltype(first)>;
    const double* row = sums.const_data_ptr<double>();
    A *d_mean = out.mutable_data_ptr<A>(), *d_var = d_mean + channels;
    for (const auto& layer : layers) {
      const DistanceSums<double> sum{row[0], row[1]};
      row += 2;
      const double pull = layer.weight * *grad.const_data_ptr<A>();
      along_channels<A>(layer, [&](const auto& statistics, const auto& target) {
        const auto d = statistics_gradient(distance, moment, statistics, target, sum);
        *d_mean++ = static_cast<A>(pull * d.mean);
        *d_var++ = static_cast<A>(pull * d.var);
      });
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CPU, m) {
  m.impl("_match_statistics_forward", checked<&match_statistics_arguments, &forward>);
  m.impl("_match_statistics_backward", checked<&match_statistics_backward_arguments, &backward>);
}

}  // namespace
}  // namespace exml
