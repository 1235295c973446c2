// Convolution of few channels with one image a vector lane: the pixels of many images lie side by side, and every
// product is a vector of pixels times one weight, however few channels there are. Libraries vectorise over channels.
#pragma once

#include <optional>

#include "ops/tensor.h"

namespace exml {

// Stride 1 and one group; all tensors on one device and of one dtype.

// The arguments of a forward kernel: x (N, C, H, W), weight (K, C, kernel height, kernel width), bias (K,), and padding
// from 0 to the kernel's size less one. It returns (N, K, H', W') in lane_conv2d_format.
struct LaneConv2d {
  Tensor x, weight;
  OptionalTensor bias;
  Sizes padding;
};

// The arguments of the kernel of the input gradient: grad (N, K, H', W') and the sizes of x. It returns the gradient of
// x, channels_last if grad or the weight is.
struct LaneConv2dInput {
  Tensor grad, weight;
  Sizes sizes, padding;
};

// The arguments of the kernel of the weight gradient: grad, x and the sizes of the weight. It returns the gradient of
// the weight.
struct LaneConv2dWeight {
  Tensor grad, x;
  Sizes sizes, padding;
};

// Check the arguments of exml::_lane_conv2d_forward, _input and _weight.
LaneConv2d lane_conv2d_arguments(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Sizes padding);
LaneConv2dInput lane_conv2d_input_arguments(const Tensor& grad, const Tensor& weight, Sizes sizes, Sizes padding);
LaneConv2dWeight lane_conv2d_weight_arguments(const Tensor& grad, const Tensor& x, Sizes sizes, Sizes padding);

// The kernels of the CPU.
Tensor lane_conv2d_cpu(const LaneConv2d& arguments);
Tensor lane_conv2d_input_cpu(const LaneConv2dInput& arguments);
Tensor lane_conv2d_weight_cpu(const LaneConv2dWeight& arguments);

// The library's convolution, for devices without a kernel here and for tensors without elements.
Tensor library_lane_conv2d(const LaneConv2d& arguments);
Tensor library_lane_conv2d_input(const LaneConv2dInput& arguments);
Tensor library_lane_conv2d_weight(const LaneConv2dWeight& arguments);

// The memory format of the result, as the library chooses it: channels_last if x or the weight is.
inline MemoryFormat lane_conv2d_format(const Tensor& x, const Tensor& weight) {
  const MemoryFormat of_x = suggested_format(x);
  return of_x == MemoryFormat::ChannelsLast ? of_x : suggested_format(weight);
}

}  // namespace exml
