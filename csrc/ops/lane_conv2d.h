// Convolution of few channels with one image a vector lane: the pixels of many images lie side by side, and every
// product is a vector of pixels times one weight, however few channels there are. Libraries vectorise over channels.
#pragma once

#include <ATen/core/Tensor.h>

namespace exml {

namespace cpu {

// Sizes of one convolution. Scratch memory is [channel][row][column][image]: x with columns of zeros at both sides and
// rows of `row` pixels; `plane` and `out_plane` lie between channels.
struct LaneShape {
  int64_t channels, height, kernel_height, kernel_width, row, plane, top, out_height, out_width, out_plane;
};

}  // namespace cpu

// Stride 1, one group; all tensors on the CPU, x (N, C, H, W) and grad (N, K, H', W') contiguous in either memory
// format, everything of one dtype, nothing empty.

// (N, K, H', W'), channels_last if x or the weight is; weight (K, C, kernel height, kernel width), bias (K,).
at::Tensor lane_conv2d_cpu(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                           at::IntArrayRef padding);

// The gradient (N, C, H, W) of x, channels_last if grad or the weight is; padding no larger than the kernel less one.
at::Tensor lane_conv2d_input_cpu(const at::Tensor& grad, const at::Tensor& weight, at::IntArrayRef padding);

// The gradient of the weight, of shape `sizes`.
at::Tensor lane_conv2d_weight_cpu(const at::Tensor& grad, const at::Tensor& x, at::IntArrayRef sizes,
                                  at::IntArrayRef padding);

// Of the result, as the library's.
inline at::MemoryFormat lane_conv2d_format(const at::Tensor& x, const at::Tensor& weight) {
  constexpr auto last = at::MemoryFormat::ChannelsLast;
  return x.suggest_memory_format() == last || weight.suggest_memory_format() == last ? last
                                                                                     : at::MemoryFormat::Contiguous;
}

// The same with checks, for any device and shape: the library's where the above do not apply.
at::Tensor lane_conv2d_forward(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                               at::IntArrayRef padding);
at::Tensor lane_conv2d_input(const at::Tensor& grad, const at::Tensor& weight, at::IntArrayRef sizes,
                             at::IntArrayRef padding);

}  // namespace exml
