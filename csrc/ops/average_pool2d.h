// Average pooling over windows that do not overlap, in channels_last on the CPU: the library's takes
// longer than the convolutions of a small network.
#pragma once

#include <ATen/core/Tensor.h>

namespace exml {

// x (N, C, H, W) channels_last; out (N, C, H / height, W / width) channels_last, of x's dtype.
void average_pool2d_forward_cpu(const at::Tensor& x, int64_t height, int64_t width, at::Tensor& out);
// grad and its image, which is written everywhere: pixels beyond the last window get 0.
void average_pool2d_backward_cpu(const at::Tensor& grad, int64_t height, int64_t width, at::Tensor& out);

}  // namespace exml
