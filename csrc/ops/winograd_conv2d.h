// 3x3 convolution with constant weights by Winograd's F(4x4, 3x3): 36 matrix products in float32 with a quarter of the
// multiplications of the convolution (Lavin 2016, arXiv:1509.09308).
#pragma once

#include "ops/tensor.h"

namespace exml {

// Output channels of a panel of weights.
constexpr int64_t kPanel = 32;

// Stride 1, one group. x (N, C, H, W) float32 or bfloat16, channels_last, on the CPU, at least 16 channels; panels
// as exml::winograd_weights returns them; bias (outputs,). Returns (N, outputs, H', W') channels_last in x's dtype.
// Sums are float32. An infinity or NaN in x makes the outputs of its tiles of 4x4 pixels NaN.
Tensor winograd_conv2d_cpu(const Tensor& x, const Tensor& panels, const OptionalTensor& bias, int64_t outputs,
                           Sizes padding);

}  // namespace exml
