// How an activation's channels lie in memory, for the launchers of kernels (ops/channel_layout.h without torch).
#pragma once

#include <cstdint>

namespace exml::cuda {

struct ChannelShape {
  int64_t batch, channels, plane;
  bool channels_last;

  int64_t count() const { return batch * plane; }  // values of one channel
};

}  // namespace exml::cuda
