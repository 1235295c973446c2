#include "ops/frozen_bn_act.h"

#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "ops/checks.h"

namespace exml {

Activation activation_from(std::string_view name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "relu6") return Activation::relu6;
  if (name == "silu") return Activation::silu;
  if (name == "hardswish") return Activation::hardswish;
  if (name == "leaky_relu") return Activation::leaky_relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "tanh") return Activation::tanh;
  TORCH_CHECK_VALUE(false,
                    "frozen_bn_act: activation must be 'none', 'relu', 'relu6', 'silu', 'hardswish', 'leaky_relu', "
                    "'gelu', 'gelu_tanh' or 'tanh', got '",
                    name, "'");
}

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

void check_constants(const char* name, const Tensor& given, const Tensor& x) {
  TORCH_CHECK_VALUE(given.dim() == 1 && given.size(0) == x.size(1), "frozen_bn_act: ", name,
                    " must have shape (C,) = (", x.size(1), ",) to match x of shape ", x.sizes(), ", got ",
                    given.sizes());
  TORCH_CHECK_VALUE(given.is_floating_point(), "frozen_bn_act: ", name, " must be floating point, got ",
                    given.scalar_type());
  check_device("frozen_bn_act", name, given, "x", x);
}

void check_like_x(const char* name, const OptionalTensor& t, const Tensor& x) {
  if (!t || !t->defined()) return;
  TORCH_CHECK_VALUE(t->sizes() == x.sizes(), "frozen_bn_act: ", name, " must have x's shape ", x.sizes(), ", got ",
                    t->sizes());
  TORCH_CHECK_VALUE(t->scalar_type() == x.scalar_type(), "frozen_bn_act: ", name, " must have x's dtype ",
                    x.scalar_type(), ", got ", t->scalar_type());
  check_device("frozen_bn_act", name, *t, "x", x);
}

void check(const Tensor& x, const Tensor& scale, const Tensor& shift, const OptionalTensor& residual) {
  check_pixels("frozen_bn_act", "x", x);
  TORCH_CHECK_VALUE(x.dim() >= 2 && x.dim() <= 5,
                    "frozen_bn_act: x must have 2 to 5 dimensions (N, C, ...), got shape ", x.sizes());
  TORCH_CHECK_VALUE(x.numel() > 0, "frozen_bn_act: x must not be empty, got shape ", x.sizes());
  check_constants("scale", scale, x);
  check_constants("shift", shift, x);
  check_like_x("residual", residual, x);
}

// An optional tensor in x's memory order, or undefined.
Tensor laid_out(const OptionalTensor& t, const Tensor& x, const ChannelLayout& layout) {
  if (!t || !t->defined()) return {};
  if (t->strides() == x.strides()) return *t;
  return layout.channels_last ? t->movedim(1, -1).contiguous().movedim(-1, 1) : t->contiguous();
}

FrozenBNAct prepared(const Tensor& x, const Tensor& scale, const Tensor& shift, const OptionalTensor& residual,
                     std::string_view activation, double negative_slope) {
  const auto accumulator = accumulator_dtype(x);
  const auto [dense, layout] = with_channel_layout(x);
  return {dense,
          layout,
          scale.to(accumulator).contiguous(),
          shift.to(accumulator).contiguous(),
          laid_out(residual, dense, layout),
          activation_from(activation),
          negative_slope};
}

}  // namespace

FrozenBNAct frozen_bn_act_arguments(const Tensor& x, const Tensor& scale, const Tensor& shift,
                                    const OptionalTensor& residual, std::string_view activation,
                                    double negative_slope) {
  check(x, scale, shift, residual);
  return prepared(x, scale, shift, residual, activation, negative_slope);
}

FrozenBNActBackward frozen_bn_act_backward_arguments(const OptionalTensor& grad_y, const OptionalTensor& grad_mean,
                                                     const OptionalTensor& grad_var, const Tensor& x,
                                                     const Tensor& scale, const Tensor& shift,
                                                     const OptionalTensor& residual, const Tensor& mean,
                                                     std::string_view activation, double negative_slope,
                                                     bool with_residual) {
  const FrozenBNAct op = frozen_bn_act_arguments(x, scale, shift, residual, activation, negative_slope);
  const auto checked_or_undefined = [&](const char* name, const OptionalTensor& t) {
    return t && t->defined() ? checked_saved("frozen_bn_act", name, *t, {x.size(1)}, accumulator_dtype(x), x)
                             : Tensor();
  };
  check_like_x("grad_y", grad_y, x);
  const Tensor checked_mean = checked_or_undefined("mean", mean);
  // Without a gradient of the statistics the mean is not needed: one NaN pixel must not reach all others by it.
  const bool of_statistics = (grad_mean && grad_mean->defined()) || (grad_var && grad_var->defined());
  return {op,
          laid_out(grad_y, op.x, op.layout),
          checked_or_undefined("grad_mean", grad_mean),
          checked_or_undefined("grad_var", grad_var),
          of_statistics ? checked_mean : at::zeros_like(checked_mean),
          with_residual};
}

TORCH_LIBRARY_FRAGMENT(exml, m) {
  m.def(
      "frozen_bn_act(Tensor x, Tensor scale, Tensor shift, Tensor? residual=None, str activation='none', float "
      "negative_slope=0.01) -> (Tensor y, Tensor mean, Tensor var)");
  m.def(
      "_frozen_bn_act_forward(Tensor x, Tensor scale, Tensor shift, Tensor? residual, str activation, float "
      "negative_slope) -> (Tensor y, Tensor mean, Tensor var)");
  m.def(
      "_frozen_bn_act_backward(Tensor? grad_y, Tensor? grad_mean, Tensor? grad_var, Tensor x, Tensor scale, Tensor "
      "shift, Tensor? residual, Tensor mean, str activation, float negative_slope, bool with_residual) -> Tensor[]");
}

}  // namespace exml
