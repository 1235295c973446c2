#include <vector>

#include "ops/backend.h"
#include "ops/bn_match.h"
#include "ops/cpu/channel_loop.h"
#include "ops/dispatch.h"

#define EXML_SIMD_SOURCE "ops/cpu/bn_match_simd.h"
#include "ops/cpu/for_each_capability.h"

namespace exml {
namespace {

std::tuple<Tensor, Tensor> forward(const BNMatch& arguments) {
  const auto& [x, layout, mean, var, distance, moment] = arguments;
  const int64_t channels = layout.channels;
  const ScalarType accumulator = mean.scalar_type();
  Tensor loss = empty({}, accumulator, x), coefficients = empty({3, channels}, accumulator, x);
  dispatch_pixels(x, [&](auto* pixels) {
    using A = Accumulator<PixelOf<decltype(pixels)>>;
    const auto batch = channel_moments(
        layout,
        [&](int64_t offset, int64_t rows, Moments<double>* moments) {
          EXML_CPU_CALL(row_moments, pixels + offset, rows, channels, moments);
        },
        [&](int64_t offset, int64_t) { return EXML_CPU_CALL(run_moments, pixels + offset, layout.plane); });
    const A *given_mean = mean.const_data_ptr<A>(), *given_var = var.const_data_ptr<A>();
    const auto statistics = [&](int64_t c) { return ChannelStatistics<double>{batch[c].mean, batch[c].variance()}; };
    const auto given = [&](int64_t c) { return ChannelStatistics<double>{given_mean[c], given_var[c]}; };
    DistanceSums<double> sums;
    for (int64_t c = 0; c < channels; ++c) {
      const auto term = channel_distance(distance, moment, statistics(c), given(c));
      sums.mean += term.mean;
      sums.moment += term.moment;
    }
    *loss.mutable_data_ptr<A>() = static_cast<A>(distance_loss(distance, sums));
    A* out = coefficients.mutable_data_ptr<A>();
    for (int64_t c = 0; c < channels; ++c) {
      const auto g = pixel_gradient<double>(distance, moment, statistics(c), given(c), sums, layout.count());
      out[c] = static_cast<A>(g.offset);
      out[channels + c] = static_cast<A>(g.slope);
      out[2 * channels + c] = static_cast<A>(g.mean);
    }
  });
  return {loss, coefficients};
}

Tensor backward(const BNMatchBackward& arguments) {
  const auto& [grad, x, layout, coefficients] = arguments;
  Tensor out = new_like(x);
  const int64_t channels = layout.channels;
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    const A scale = *grad.const_data_ptr<A>();
    const A* saved = coefficients.const_data_ptr<A>();
    std::vector<A> scaled(saved, saved + 3 * channels);
    for (int64_t c = 0; c < 2 * channels; ++c) scaled[c] *= scale;
    const A *offset = scaled.data(), *slope = offset + channels, *mean = slope + channels;
    T* result = static_cast<T*>(out.mutable_data_ptr());
    for_each_channel(
        layout,
        [&](int64_t begin, int64_t rows) {
          EXML_CPU_CALL(row_gradient, pixels + begin, result + begin, rows, channels, offset, slope, mean);
        },
        [&](int64_t begin, int64_t c) {
          EXML_CPU_CALL(run_gradient, pixels + begin, result + begin, layout.plane,
                        PixelGradient<A>{offset[c], slope[c], mean[c]});
        });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CPU, m) {
  m.impl("_bn_match_forward", checked<&bn_match_arguments, &forward>);
  m.impl("_bn_match_backward", checked<&bn_match_backward_arguments, &backward>);
}

}  // namespace
}  // namespace exml
