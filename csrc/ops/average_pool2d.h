// Average pooling over windows that do not overlap. In channels_last on the CPU it has a kernel of its own, because the
// library's takes longer than the convolutions of a small network.
#pragma once

#include "ops/tensor.h"

namespace exml {

// The arguments of a forward kernel: x (N, C, H, W) and the size of a window. It returns (N, C, H / height, W / width)
// in x's dtype and memory format.
struct AveragePool2d {
  Tensor x;
  int64_t height, width;
};

// The arguments of a backward kernel: grad (N, C, H / height, W / width), the sizes of x, and whether x was
// channels_last. It returns the gradient of x, which is 0 at pixels beyond the last window.
struct AveragePool2dBackward {
  Tensor grad;
  Sizes sizes;
  int64_t height, width;
  bool channels_last;
};

// Checks the arguments of exml::_average_pool2d_forward and _backward.
AveragePool2d average_pool2d_arguments(const Tensor& x, Sizes kernel);
AveragePool2dBackward average_pool2d_backward_arguments(const Tensor& grad, Sizes sizes, Sizes kernel,
                                                        bool channels_last);

// The library's pooling, for devices and memory formats without a kernel here.
Tensor library_average_pool2d(const AveragePool2d& arguments);
Tensor library_average_pool2d_backward(const AveragePool2dBackward& arguments);

}  // namespace exml
