// How the input gradient of a convolution with constant weights is computed.
#pragma once

#include <string_view>

namespace exml {

enum class Adjoint {
  library,       // convolution_backward
  convolution,   // stride 1: a convolution with the flipped, transposed weights
  zero_stuffed,  // any stride: the same, on a gradient with zeros between its values
  subpixel,      // equal strides, few input channels: stride^2 convolutions in one, then a pixel shuffle
  lanes          // stride 1, few channels: lane_conv2d.h
};

Adjoint adjoint_from(std::string_view name);

}  // namespace exml
