// Batch normalisation with frozen statistics, residual and activation, and the statistics of the input, in one pass.
#pragma once

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "math/activation.h"
#include "ops/channel_layout.h"

namespace exml {

Activation activation_from(std::string_view name);

// The arguments of a forward kernel, for y = activation(scale x + shift (+ residual)): x, dense in `layout`; scale,
// shift (C,), contiguous in the accumulator's dtype; residual, laid out as x, or none. It returns y, laid out as x, the
// mean and variance of x (C,) in the accumulator's dtype and, with_mask, where relu passes the gradient: bytes of 0 and
// 1, laid out as x; otherwise an empty tensor in its place.
struct FrozenBNAct {
  Tensor x;
  ChannelLayout layout;
  Tensor scale, shift;
  OptionalTensor residual;
  Activation activation;
  double negative_slope;
  bool with_mask;
};

// The arguments of a backward kernel: the forward pass, what arrives at its outputs (each may be absent; grad_y is
// laid out as x), its mean, and its mask, which takes the residual's place, or none. It returns the gradient of x and,
// with_residual, that of the residual.
struct FrozenBNActBackward {
  FrozenBNAct op;
  OptionalTensor grad_y, grad_mean, grad_var;
  Tensor mean;
  OptionalTensor mask;
  bool with_residual;
};

// The memory of the mask.
inline Tensor new_mask(const FrozenBNAct& op) {
  if (!op.with_mask) return empty({0}, ScalarType::Byte, op.x);
  return empty_strided(op.x.sizes(), op.x.strides(), ScalarType::Byte, op.x);
}

// Checks the arguments of exml::_frozen_bn_act_forward and _backward and lays them out for a kernel.
FrozenBNAct frozen_bn_act_arguments(const Tensor& x, const Tensor& scale, const Tensor& shift,
                                    const OptionalTensor& residual, std::string_view activation, double negative_slope,
                                    bool with_mask);
FrozenBNActBackward frozen_bn_act_backward_arguments(const OptionalTensor& grad_y, const OptionalTensor& grad_mean,
                                                     const OptionalTensor& grad_var, const Tensor& x,
                                                     const Tensor& scale, const Tensor& shift,
                                                     const OptionalTensor& residual, const Tensor& mean,
                                                     const OptionalTensor& mask, std::string_view activation,
                                                     double negative_slope, bool with_residual);

}  // namespace exml
