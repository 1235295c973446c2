// Convolution with constant weights: how its weights lie in memory and how its input gradient is computed.
#pragma once

#include <string_view>

namespace exml {

// How weights lie in memory.
enum class WeightLayout {
  plain,    // (K, C / groups, kernel height, kernel width)
  packed,   // the same values in a layout of oneDNN's own
  windows,  // (K, kernel height, S), of the input gradient only: window_conv2d.h
  winograd  // (P, 6, 6, C, 32): winograd_conv2d.h
};

enum class Adjoint {
  library,       // convolution_backward
  convolution,   // stride 1: a convolution with the flipped, transposed weights
  zero_stuffed,  // any stride: the same, on a gradient with zeros between its values
  subpixel,      // equal strides, few input channels: stride^2 convolutions in one, then subpixel.h
  lanes          // stride 1, few channels: lane_conv2d.h
};

// `argument` is the name of the argument in the error for an unknown layout.
WeightLayout weight_layout_from(const char* argument, std::string_view name);
Adjoint adjoint_from(std::string_view name);

}  // namespace exml
