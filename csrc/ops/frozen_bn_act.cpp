#include "ops/frozen_bn_act.h"

#include "ops/checks.h"
#include "ops/schema.h"

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
  EXML_CHECK_VALUE(false,
                   "frozen_bn_act: activation must be 'none', 'relu', 'relu6', 'silu', 'hardswish', 'leaky_relu', "
                   "'gelu', 'gelu_tanh' or 'tanh', got '",
                   name, "'");
}

namespace {

void check_constants(const char* name, const Tensor& given, const Tensor& x) {
  EXML_CHECK_VALUE(given.dim() == 1 && given.size(0) == x.size(1), "frozen_bn_act: ", name, " must have shape (C,) = (",
                   x.size(1), ",) to match x of shape ", x.sizes(), ", got ", given.sizes());
  EXML_CHECK_VALUE(is_floating_point(given), "frozen_bn_act: ", name, " must be floating point, got ",
                   given.scalar_type());
  check_device("frozen_bn_act", name, given, "x", x);
}

void check_like_x(const char* name, const OptionalTensor& t, const Tensor& x) {
  if (!t) return;
  EXML_CHECK_VALUE(equal(t->sizes(), x.sizes()), "frozen_bn_act: ", name, " must have x's shape ", x.sizes(), ", got ",
                   t->sizes());
  EXML_CHECK_VALUE(t->scalar_type() == x.scalar_type(), "frozen_bn_act: ", name, " must have x's dtype ",
                   x.scalar_type(), ", got ", t->scalar_type());
  check_device("frozen_bn_act", name, *t, "x", x);
}

void check(const Tensor& x, const Tensor& scale, const Tensor& shift, const OptionalTensor& residual) {
  check_pixels("frozen_bn_act", "x", x);
  EXML_CHECK_VALUE(x.dim() >= 2 && x.dim() <= 5, "frozen_bn_act: x must have 2 to 5 dimensions (N, C, ...), got shape ",
                   x.sizes());
  EXML_CHECK_VALUE(x.numel() > 0, "frozen_bn_act: x must not be empty, got shape ", x.sizes());
  check_constants("scale", scale, x);
  check_constants("shift", shift, x);
  check_like_x("residual", residual, x);
}

// An optional tensor in x's memory order.
OptionalTensor laid_out(const OptionalTensor& t, const Tensor& x) {
  if (!t || equal(t->strides(), x.strides())) return t;
  Tensor copy = empty_strided(x.sizes(), x.strides(), t->scalar_type(), x);
  return torch::stable::copy_(copy, *t);
}

void check_mask(const Tensor& mask, const Tensor& x, const OptionalTensor& residual) {
  EXML_CHECK_VALUE(mask.scalar_type() == ScalarType::Byte && equal(mask.sizes(), x.sizes()),
                   "frozen_bn_act: mask must be uint8 of x's shape ", x.sizes(), ", got ", mask.scalar_type(),
                   " of shape ", mask.sizes());
  check_device("frozen_bn_act", "mask", mask, "x", x);
  EXML_CHECK_VALUE(!residual, "frozen_bn_act: mask takes the place of residual, got both");
}

FrozenBNAct prepared(const Tensor& x, const Tensor& scale, const Tensor& shift, const OptionalTensor& residual,
                     std::string_view activation, double negative_slope, bool with_mask) {
  const auto accumulator = accumulator_dtype(x);
  const auto [dense, layout] = with_channel_layout(x);
  return {dense,
          layout,
          as_contiguous(as_type(scale, accumulator)),
          as_contiguous(as_type(shift, accumulator)),
          laid_out(residual, dense),
          activation_from(activation),
          negative_slope,
          with_mask};
}

}  // namespace

FrozenBNAct frozen_bn_act_arguments(const Tensor& x, const Tensor& scale, const Tensor& shift,
                                    const OptionalTensor& residual, std::string_view activation, double negative_slope,
                                    bool with_mask) {
  check(x, scale, shift, residual);
  EXML_CHECK_VALUE(!with_mask || activation == "relu", "frozen_bn_act: only activation 'relu' has a mask, got '",
                   activation, "'");
  return prepared(x, scale, shift, residual, activation, negative_slope, with_mask);
}

FrozenBNActBackward frozen_bn_act_backward_arguments(const OptionalTensor& grad_y, const OptionalTensor& grad_mean,
                                                     const OptionalTensor& grad_var, const Tensor& x,
                                                     const Tensor& scale, const Tensor& shift,
                                                     const OptionalTensor& residual, const Tensor& mean,
                                                     const OptionalTensor& mask, std::string_view activation,
                                                     double negative_slope, bool with_residual) {
  const FrozenBNAct op =
      frozen_bn_act_arguments(x, scale, shift, residual, activation, negative_slope, mask.has_value());
  if (mask) check_mask(*mask, x, residual);
  const auto of_channels = [&](const char* name, const Tensor& t) {
    return checked_saved("frozen_bn_act", name, t, {x.size(1)}, accumulator_dtype(x), x);
  };
  const auto of_channels_or_none = [&](const char* name, const OptionalTensor& t) {
    return t ? OptionalTensor(of_channels(name, *t)) : std::nullopt;
  };
  check_like_x("grad_y", grad_y, x);
  const Tensor checked_mean = of_channels("mean", mean);
  // Without a gradient of the statistics the mean is not needed: one NaN pixel must not reach all others by it.
  const bool of_statistics = grad_mean || grad_var;
  return {op,
          laid_out(grad_y, op.x),
          of_channels_or_none("grad_mean", grad_mean),
          of_channels_or_none("grad_var", grad_var),
          of_statistics ? checked_mean : zeros_like(checked_mean),
          laid_out(mask, op.x),
          with_residual};
}

EXML_SCHEMAS(m) {
  m.def(
      "_frozen_bn_act_forward(Tensor x, Tensor scale, Tensor shift, Tensor? residual, str activation, float "
      "negative_slope, bool with_mask) -> (Tensor y, Tensor mean, Tensor var, Tensor mask)");
  m.def(
      "_frozen_bn_act_backward(Tensor? grad_y, Tensor? grad_mean, Tensor? grad_var, Tensor x, Tensor scale, Tensor "
      "shift, Tensor? residual, Tensor mean, Tensor? mask, str activation, float negative_slope, bool with_residual) "
      "-> "
      "Tensor[]");
}

}  // namespace exml
