// 3x3 convolution with constant weights by Winograd's F(4x4, 3x3): 36 matrix products in float32 with a quarter of the
// multiplications of the convolution (Lavin 2016, arXiv:1509.09308).
#pragma once

#include <ATen/core/Tensor.h>

namespace exml {

// Output channels of a panel of weights.
constexpr int64_t kPanel = 32;

// The argument of exml::winograd_weights, checked: weight (K, C, 3, 3). A kernel returns the transformed weights G w
// G^T (Lavin 2016, Eq. 12) as panels (P, 6, 6, C, kPanel) float32 with P = ceil(K / kPanel), contiguous: panel p holds
// the output channels from p * kPanel on, and zeros from K on.
const at::Tensor& winograd_weights_arguments(const at::Tensor& weight);

// Stride 1, one group. x (N, C, H, W) float32 or bfloat16, channels_last, on the CPU, at least 16 channels; panels
// as exml::winograd_weights returns them; bias (outputs,). Returns (N, outputs, H', W') channels_last in x's dtype.
// Sums are float32. An infinity or NaN in x makes the outputs of its tiles of 4x4 pixels NaN.
at::Tensor winograd_conv2d_cpu(const at::Tensor& x, const at::Tensor& panels, const std::optional<at::Tensor>& bias,
                               int64_t outputs, at::IntArrayRef padding);

}  // namespace exml
