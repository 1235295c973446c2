// Batch normalisation with frozen statistics, residual and activation, and the statistics of the input, in one pass.
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

// The arguments of a forward kernel, for y = activation(scale x + shift (+ residual)): x, dense in `layout`; scale,
// shift (C,), contiguous in the accumulator's dtype; residual, laid out as x, or undefined. It returns y, laid out as
// x, and the mean and variance of x (C,) in the accumulator's dtype.
struct FrozenBNAct {
  at::Tensor x;
  ChannelLayout layout;
  at::Tensor scale, shift, residual;
  Activation activation;
  double negative_slope;
};

// The arguments of a backward kernel: the forward pass, what arrives at its outputs (each may be undefined; grad_y is
// laid out as x), and its mean. It returns the gradient of x and, with_residual, that of the residual.
struct FrozenBNActBackward {
  FrozenBNAct op;
  at::Tensor grad_y, grad_mean, grad_var, mean;
  bool with_residual;
};

// Checks the arguments of exml::_frozen_bn_act_forward and _backward and lays them out for a kernel.
FrozenBNAct frozen_bn_act_arguments(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift,
                                    const std::optional<at::Tensor>& residual, std::string_view activation,
                                    double negative_slope);
FrozenBNActBackward frozen_bn_act_backward_arguments(const std::optional<at::Tensor>& grad_y,
                                                     const std::optional<at::Tensor>& grad_mean,
                                                     const std::optional<at::Tensor>& grad_var, const at::Tensor& x,
                                                     const at::Tensor& scale, const at::Tensor& shift,
                                                     const std::optional<at::Tensor>& residual, const at::Tensor& mean,
                                                     std::string_view activation, double negative_slope,
                                                     bool with_residual);

}  // namespace exml
