#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <vector>

#include "math/moments.h"
#include "ops/bn_match.h"
#include "ops/cpu/dispatch.h"

#define EXML_SIMD_SOURCE "ops/cpu/bn_match_simd.h"
#include "ops/cpu/for_each_capability.h"

namespace exml {
namespace {

using at::Tensor;

// Values of x that one task of a parallel loop handles.
constexpr int64_t kTask = 16384;
// Upper bound on the partial results a channel, whatever the number of threads: results do not depend on it.
constexpr int64_t kPartials = 32;

template <typename T>
std::vector<Moments<double>> channel_moments(const T* x, const ChannelLayout& layout) {
  const int64_t channels = layout.channels, plane = layout.plane;
  const int64_t units = layout.channels_last ? layout.count() : layout.batch;
  const int64_t unit_size = layout.channels_last ? channels : channels * plane;
  const int64_t chunk = std::max((units + kPartials - 1) / kPartials, (kTask + unit_size - 1) / unit_size);
  const int64_t chunks = (units + chunk - 1) / chunk;
  std::vector<Moments<double>> partial(chunks * channels);
  if (layout.channels_last) {
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        EXML_CPU_CALL(row_moments, x + i * chunk * channels, std::min(chunk, units - i * chunk), channels,
                      partial.data() + i * channels);
    });
  } else {
    at::parallel_for(
        0, chunks * channels, std::max<int64_t>(1, kTask / (chunk * plane)), [&](int64_t begin, int64_t end) {
          for (int64_t n = begin / channels * chunk; n < layout.batch && n / chunk * channels < end; ++n) {
            const int64_t row = n / chunk * channels;
            for (int64_t c = std::max<int64_t>(0, begin - row); c < std::min(channels, end - row); ++c)
              partial[row + c] =
                  combine(partial[row + c], EXML_CPU_CALL(run_moments, x + (n * channels + c) * plane, plane));
          }
        });
  }
  for (int64_t i = 1; i < chunks; ++i)
    for (int64_t c = 0; c < channels; ++c) partial[c] = combine(partial[c], partial[i * channels + c]);
  partial.resize(channels);
  return partial;
}

}  // namespace

std::tuple<Tensor, Tensor> bn_match_forward_cpu(const Tensor& x, const ChannelLayout& layout, const Tensor& mean,
                                                const Tensor& var, Distance distance, Moment moment) {
  const int64_t channels = layout.channels;
  Tensor loss = at::empty({}, mean.options()), coefficients = at::empty({3, channels}, mean.options());
  dispatch_pixels(x, [&](auto* pixels) {
    using A = Accumulator<std::remove_const_t<std::remove_pointer_t<decltype(pixels)>>>;
    const auto batch = channel_moments(pixels, layout);
    const A *given_mean = mean.const_data_ptr<A>(), *given_var = var.const_data_ptr<A>();
    const auto statistics = [&](int64_t c) { return ChannelStatistics<double>{batch[c].mean, batch[c].variance()}; };
    const auto given = [&](int64_t c) { return ChannelStatistics<double>{given_mean[c], given_var[c]}; };
    DistanceSums<double> sums;
    for (int64_t c = 0; c < channels; ++c) {
      const auto term = channel_distance(distance, moment, statistics(c), given(c));
      sums.mean += term.mean;
      sums.moment += term.moment;
    }
    *loss.data_ptr<A>() = static_cast<A>(distance_loss(distance, sums));
    A* out = coefficients.data_ptr<A>();
    for (int64_t c = 0; c < channels; ++c) {
      const auto g = pixel_gradient<double>(distance, moment, statistics(c), given(c), sums, layout.count());
      out[c] = static_cast<A>(g.offset);
      out[channels + c] = static_cast<A>(g.slope);
      out[2 * channels + c] = static_cast<A>(g.mean);
    }
  });
  return {loss, coefficients};
}

Tensor bn_match_backward_cpu(const Tensor& grad, const Tensor& x, const ChannelLayout& layout,
                             const Tensor& coefficients) {
  Tensor out = at::empty_like(x);
  const int64_t channels = layout.channels, plane = layout.plane;
  dispatch_pixels(x, [&](auto* pixels) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(pixels)>>;
    using A = Accumulator<T>;
    const A scale = *grad.const_data_ptr<A>();
    const A* saved = coefficients.const_data_ptr<A>();
    std::vector<A> scaled(saved, saved + 3 * channels);
    for (int64_t c = 0; c < 2 * channels; ++c) scaled[c] *= scale;
    const A *offset = scaled.data(), *slope = offset + channels, *mean = slope + channels;
    T* result = static_cast<T*>(out.mutable_data_ptr());
    if (layout.channels_last) {
      at::parallel_for(0, layout.count(), (kTask + channels - 1) / channels, [&](int64_t begin, int64_t end) {
        EXML_CPU_CALL(row_gradient, pixels + begin * channels, result + begin * channels, end - begin, channels, offset,
                      slope, mean);
      });
    } else {
      at::parallel_for(0, layout.batch * channels, (kTask + plane - 1) / plane, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          const int64_t c = p % channels;
          EXML_CPU_CALL(run_gradient, pixels + p * plane, result + p * plane, plane,
                        PixelGradient<A>{offset[c], slope[c], mean[c]});
        }
      });
    }
  });
  return out;
}

}  // namespace exml
