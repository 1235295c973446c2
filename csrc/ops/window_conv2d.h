// Convolution to few output channels: each output is a product of a window of the image with weights, and in
// channels_last the window is a few runs of values that lie one after the other. Libraries compute 16 output channels
// or none.
#pragma once

#include "ops/tensor.h"

namespace exml {

// Stride 1, one group, no bias. x (N, C, H, W) channels_last, on the CPU; windows (K, kernel height, S) in x's
// accumulator dtype: the kernel_width * C values of a row of taps, then zeros up to S, a multiple of 64 bytes.
// Returns (N, K, H', W') channels_last in x's dtype. An infinity in x makes the outputs of a few pixels beside its
// window NaN.
Tensor window_conv2d_cpu(const Tensor& x, const Tensor& windows, int64_t kernel_width, Sizes padding);

}  // namespace exml
