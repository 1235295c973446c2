// How the channels of an activation (N, C, ...) lie in memory.
#pragma once

#include <ATen/core/Tensor.h>

namespace exml {

// Planes of `plane` pixels, one a channel (contiguous), or rows of `channels` values, one a pixel (channels_last).
struct ChannelLayout {
  int64_t batch, channels, plane;
  bool channels_last;

  int64_t count() const { return batch * plane; }  // values of one channel
};

// Returns x if its memory is dense in one of the two orders, otherwise a contiguous copy; and the layout.
inline std::pair<at::Tensor, ChannelLayout> with_channel_layout(const at::Tensor& x) {
  const auto rows = [&](const at::Tensor& t) { return t.dim() > 2 && t.movedim(1, -1).is_contiguous(); };
  ChannelLayout layout{x.size(0), x.size(1), 1, false};
  for (int64_t d = 2; d < x.dim(); ++d) layout.plane *= x.size(d);
  if (x.is_contiguous()) {
    layout.channels_last = layout.plane == 1;
    return {x, layout};
  }
  layout.channels_last = rows(x);
  return {layout.channels_last ? x : x.contiguous(), layout};
}

}  // namespace exml
