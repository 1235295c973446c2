// Distance between the channel statistics of an activation and given statistics (Yin 2020, Eq. 4).
#pragma once

#include <string_view>
#include <tuple>

#include "math/statistics_distance.h"
#include "ops/channel_layout.h"

namespace exml {

Distance distance_from(const char* op, std::string_view name);
Moment moment_from(const char* op, std::string_view name);

// The arguments of a forward kernel: x, dense in `layout`, and the given statistics (C,), contiguous in the
// accumulator's dtype. It returns the loss (scalar) and what the backward pass needs: (3, C), PixelGradient by rows.
// Both are in the accumulator's dtype.
struct BNMatch {
  Tensor x;
  ChannelLayout layout;
  Tensor mean, var;
  Distance distance;
  Moment moment;
};

// The arguments of a backward kernel. It returns the gradient of x, laid out as x.
struct BNMatchBackward {
  Tensor grad, x;
  ChannelLayout layout;
  Tensor coefficients;
};

// Checks the arguments of exml::_bn_match_forward and _backward and lays them out for a kernel.
BNMatch bn_match_arguments(const Tensor& x, const Tensor& mean, const Tensor& var, std::string_view distance,
                           std::string_view moment);
BNMatchBackward bn_match_backward_arguments(const Tensor& grad, const Tensor& x, const Tensor& coefficients);

}  // namespace exml
