// Convolution of few channels with one image a vector lane: the pixels of many images lie side by side, and every
// product is a vector of pixels times one weight, however few channels there are. Libraries vectorise over channels.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace exml {

// Stride 1 and one group; all tensors on one device and of one dtype.

// The arguments of a forward kernel: x (N, C, H, W), weight (K, C, kernel height, kernel width), bias (K,), and padding
// from 0 to the kernel's size less one. It returns (N, K, H', W') in lane_conv2d_format.
struct LaneConv2d {
  at::Tensor x, weight;
  std::optional<at::Tensor> bias;
  at::IntArrayRef padding;
};

// The arguments of the kernel of the input gradient: grad (N, K, H', W') and the sizes of x. It returns the gradient of
// x, channels_last if grad or the weight is.
struct LaneConv2dInput {
  at::Tensor grad, weight;
  at::IntArrayRef sizes, padding;
};

// The arguments of the kernel of the weight gradient: grad, x and the sizes of the weight. It returns the gradient of
// the weight.
struct LaneConv2dWeight {
  at::Tensor grad, x;
  at::IntArrayRef sizes, padding;
};

// Check the arguments of exml::_lane_conv2d_forward, _input and _weight.
LaneConv2d lane_conv2d_arguments(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                                 at::IntArrayRef padding);
LaneConv2dInput lane_conv2d_input_arguments(const at::Tensor& grad, const at::Tensor& weight, at::IntArrayRef sizes,
                                            at::IntArrayRef padding);
LaneConv2dWeight lane_conv2d_weight_arguments(const at::Tensor& grad, const at::Tensor& x, at::IntArrayRef sizes,
                                              at::IntArrayRef padding);

// The library's convolution, for devices without a kernel here and for tensors without elements.
at::Tensor library_lane_conv2d(const LaneConv2d& arguments);
at::Tensor library_lane_conv2d_input(const LaneConv2dInput& arguments);
at::Tensor library_lane_conv2d_weight(const LaneConv2dWeight& arguments);

// The memory format of the result, as the library chooses it: channels_last if x or the weight is.
inline at::MemoryFormat lane_conv2d_format(const at::Tensor& x, const at::Tensor& weight) {
  constexpr auto last = at::MemoryFormat::ChannelsLast;
  return x.suggest_memory_format() == last || weight.suggest_memory_format() == last ? last
                                                                                     : at::MemoryFormat::Contiguous;
}

}  // namespace exml
