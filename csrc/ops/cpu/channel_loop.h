// Loops over the channels of an activation on the CPU, in parts that do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "math/moments.h"
#include "ops/channel_layout.h"

namespace exml {

// Values of x that one task of a parallel loop handles, and one that has partial results to combine.
constexpr int64_t kTask = 16384, kMomentsTask = 65536;
// Upper bound on the partial results of a channel. It does not depend on the number of threads, so that the result does
// not either.
constexpr int64_t kPartials = 32;

// The moments of every channel. rows(offset, count, moments) adds those of `count` rows at x[offset] to one Moments a
// channel; plane(offset, channel) returns those of a plane. Chunks of rows are multiples of `fold`.
template <typename Rows, typename Plane>
std::vector<Moments<double>> channel_moments(const ChannelLayout& layout, Rows rows, Plane plane_moments,
                                             int64_t fold = 1) {
  const int64_t channels = layout.channels, plane = layout.plane;
  const int64_t units = layout.channels_last ? layout.count() : layout.batch;
  const int64_t unit_size = layout.channels_last ? channels : channels * plane;
  const int64_t least = std::max((units + kPartials - 1) / kPartials, (kMomentsTask + unit_size - 1) / unit_size);
  const int64_t chunk = (least + fold - 1) / fold * fold, chunks = (units + chunk - 1) / chunk;
  std::vector<Moments<double>> partial(chunks * channels);
  if (layout.channels_last) {
    parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        rows(i * chunk * channels, std::min(chunk, units - i * chunk), partial.data() + i * channels);
    });
  } else {
    parallel_for(0, chunks * channels, std::max<int64_t>(1, kTask / (chunk * plane)), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin / channels * chunk; n < layout.batch && n / chunk * channels < end; ++n) {
        const int64_t row = n / chunk * channels;
        for (int64_t c = std::max<int64_t>(0, begin - row); c < std::min(channels, end - row); ++c)
          partial[row + c] = combine(partial[row + c], plane_moments((n * channels + c) * plane, c));
      }
    });
  }
  for (int64_t i = 1; i < chunks; ++i) {
    // All channels have the same number of values: its fractions are divided once.
    const Moments<double>* added = partial.data() + i * channels;
    const double share = added->count / (partial[0].count + added->count), weight = partial[0].count * share;
    for (int64_t c = 0; c < channels; ++c) partial[c] = combine(partial[c], added[c], share, weight);
  }
  partial.resize(channels);
  return partial;
}

// rows(offset, count) for all rows, or plane(offset, channel) for all planes.
template <typename Rows, typename Plane>
void for_each_channel(const ChannelLayout& layout, Rows rows, Plane plane_values, int64_t fold = 1) {
  const int64_t channels = layout.channels, plane = layout.plane;
  if (layout.channels_last) {
    const int64_t unit = fold * channels, units = (layout.count() + fold - 1) / fold;
    parallel_for(0, units, (kTask + unit - 1) / unit, [&](int64_t begin, int64_t end) {
      rows(begin * unit, std::min(layout.count(), end * fold) - begin * fold);
    });
  } else {
    parallel_for(0, layout.batch * channels, (kTask + plane - 1) / plane, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) plane_values(p * plane, p % channels);
    });
  }
}

}  // namespace exml
