// The last step of a convolution whose output pixels at distance `stride` see the same taps: each of the stride^2
// places of a pixel (its phases) has output channels of its own, and the phases become pixels that lie side by side.
#pragma once

#include "ops/tensor.h"

namespace exml {

// phases (N, stride^2 * C, H', W'), on the CPU: channel (a * stride + b) * C + c belongs to row a, column b of a place.
// Returns (N, C, H, W), the given sizes, channels_last: the image without its first `padding` rows and columns, and
// with zeros where it ends early.
Tensor interleave_phases_cpu(const Tensor& phases, int64_t stride, Sizes padding, Sizes sizes);

}  // namespace exml
