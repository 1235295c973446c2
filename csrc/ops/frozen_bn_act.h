// Batch normalisation with frozen statistics, residual and activation, and the statistics of what came in, in one pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "math/activation.h"
#include "ops/channel_layout.h"

namespace exml {

Activation activation_from(std::string_view name);

// The activation of z = scale x + shift (+ residual). scale, shift: (C,) in the accumulator's dtype; residual: laid out
// as x, or undefined.
struct FrozenBNAct {
  at::Tensor scale, shift, residual;
  Activation activation;
  double negative_slope;
};

// y, mean, var.
std::tuple<at::Tensor, at::Tensor, at::Tensor> frozen_bn_act_forward_cpu(const at::Tensor& x,
                                                                         const ChannelLayout& layout,
                                                                         const FrozenBNAct& op);
std::tuple<at::Tensor, at::Tensor, at::Tensor> frozen_bn_act_forward_cuda(const at::Tensor& x,
                                                                          const ChannelLayout& layout,
                                                                          const FrozenBNAct& op);

// What arrives at the outputs; each may be undefined. y is laid out as x.
struct FrozenBNActGrads {
  at::Tensor y, mean, var;
};

// grad_x and, if asked for, grad_residual. mean: that of the forward pass.
std::vector<at::Tensor> frozen_bn_act_backward_cpu(const FrozenBNActGrads& grads, const at::Tensor& x,
                                                   const ChannelLayout& layout, const FrozenBNAct& op,
                                                   const at::Tensor& mean, bool with_residual);
std::vector<at::Tensor> frozen_bn_act_backward_cuda(const FrozenBNActGrads& grads, const at::Tensor& x,
                                                    const ChannelLayout& layout, const FrozenBNAct& op,
                                                    const at::Tensor& mean, bool with_residual);

}  // namespace exml
