// How the channels of an activation (N, C, ...) lie in memory.
#pragma once

#include <utility>

#include "ops/tensor.h"

namespace exml {

// Planes of `plane` pixels, one a channel (contiguous), or rows of `channels` values, one a pixel (channels_last).
struct ChannelLayout {
  int64_t batch, channels, plane;
  bool channels_last;

  int64_t count() const { return batch * plane; }  // values of one channel
};

// Returns x if its memory is dense in one of the two orders, otherwise a contiguous copy; and the layout.
inline std::pair<Tensor, ChannelLayout> with_channel_layout(const Tensor& x) {
  const Sizes sizes = x.sizes();
  ChannelLayout layout{sizes[0], sizes[1], 1, false};
  for (size_t d = 2; d < sizes.size(); ++d) layout.plane *= sizes[d];
  if (x.is_contiguous()) {
    layout.channels_last = layout.plane == 1;
    return {x, layout};
  }
  layout.channels_last = has_channels_innermost(x);
  return {layout.channels_last ? x : as_contiguous(x), layout};
}

}  // namespace exml
