// One step of Adam on the images and the clip to their range, in place (Yin 2020, Eq. 16).
#pragma once

#include <optional>

#include "math/adam.h"
#include "ops/channel_layout.h"

namespace exml {

// The arguments of a kernel, all dense: x, exp_avg and exp_avg_sq (float32 or float64) in `layout`; grad in
// x's dtype or bfloat16, in `layout` or (grad_transposed) in the other order. step: one int64 or float32; lr: one
// value in x's dtype; low, high: (C,) in x's dtype, or none; active: bool (N,), or none.
struct AdamClip {
  Tensor x, grad, exp_avg, exp_avg_sq, step, lr;
  OptionalTensor low, high, active;
  ChannelLayout layout;
  bool grad_transposed;
  AdamRates rates;
};

// Checks the arguments of exml::_adam_clip_ and lays them out for a kernel.
AdamClip adam_clip_arguments(const Tensor& x, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                             const Tensor& step, const Tensor& lr, double beta1, double beta2, double eps,
                             const OptionalTensor& low, const OptionalTensor& high, const OptionalTensor& active);

}  // namespace exml
