#include "ops/bn_match.h"

#include "ops/checks.h"
#include "ops/schema.h"

namespace exml {

Distance distance_from(const char* op, std::string_view name) {
  if (name == "l2") return Distance::l2;
  if (name == "squared") return Distance::squared;
  if (name == "gaussian_kl") return Distance::gaussian_kl;
  EXML_CHECK_VALUE(false, op, ": distance must be 'l2', 'squared' or 'gaussian_kl', got '", name, "'");
}

Moment moment_from(const char* op, std::string_view name) {
  if (name == "var") return Moment::var;
  if (name == "std") return Moment::std;
  EXML_CHECK_VALUE(false, op, ": moment must be 'var' or 'std', got '", name, "'");
}

namespace {

void check_x(const Tensor& x) {
  check_pixels("bn_match", "x", x);
  EXML_CHECK_VALUE(x.dim() >= 2 && x.dim() <= 5, "bn_match: x must have 2 to 5 dimensions (N, C, ...), got shape ",
                   x.sizes());
  EXML_CHECK_VALUE(x.numel() > 0, "bn_match: x must not be empty, got shape ", x.sizes());
}

void check_given(const char* name, const Tensor& given, const Tensor& x) {
  EXML_CHECK_VALUE(given.dim() == 1 && given.size(0) == x.size(1), "bn_match: ", name, " must have shape (C,) = (",
                   x.size(1), ",) to match x of shape ", x.sizes(), ", got ", given.sizes());
  EXML_CHECK_VALUE(is_floating_point(given), "bn_match: ", name, " must be floating point, got ", given.scalar_type());
  check_device("bn_match", name, given, "x", x);
}

}  // namespace

BNMatch bn_match_arguments(const Tensor& x, const Tensor& mean, const Tensor& var, std::string_view distance,
                           std::string_view moment) {
  check_x(x);
  check_given("mean", mean, x);
  check_given("var", var, x);
  const auto accumulator = accumulator_dtype(x);
  const auto [dense, layout] = with_channel_layout(x);
  return {dense,
          layout,
          as_contiguous(as_type(mean, accumulator)),
          as_contiguous(as_type(var, accumulator)),
          distance_from("bn_match", distance),
          moment_from("bn_match", moment)};
}

BNMatchBackward bn_match_backward_arguments(const Tensor& grad, const Tensor& x, const Tensor& coefficients) {
  check_x(x);
  const auto accumulator = accumulator_dtype(x);
  const auto [dense, layout] = with_channel_layout(x);
  return {checked_saved("bn_match", "grad", grad, {}, accumulator, x), dense, layout,
          checked_saved("bn_match", "coefficients", coefficients, {3, x.size(1)}, accumulator, x)};
}

EXML_SCHEMAS(m) {
  m.def(
      "_bn_match_forward(Tensor x, Tensor mean, Tensor var, str distance, str moment) -> (Tensor loss, Tensor "
      "coefficients)");
  m.def("_bn_match_backward(Tensor grad, Tensor x, Tensor coefficients) -> Tensor");
}

}  // namespace exml
