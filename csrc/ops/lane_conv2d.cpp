#include "ops/lane_conv2d.h"

#include <algorithm>
#include <array>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/library_ops.h"
#include "ops/schema.h"

namespace exml {
namespace {

void check_padding(Sizes x, Sizes weight, Sizes padding) {
  EXML_CHECK_VALUE(padding.size() == 2, "lane_conv2d: padding must be two numbers, got ", padding);
  for (int64_t axis = 0; axis < 2; ++axis) {
    const int64_t kernel = weight[2 + axis];
    EXML_CHECK_VALUE(padding[axis] >= 0 && padding[axis] < kernel,
                     "lane_conv2d: padding must be from 0 to the kernel's size less one, got ", padding,
                     " for kernels of ", weight.slice(2));
    EXML_CHECK_VALUE(x[2 + axis] + 2 * padding[axis] >= kernel, "lane_conv2d: kernels of ", weight.slice(2),
                     " are larger than the padded images of x, ", x);
  }
}

void check(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Sizes padding) {
  check_pixels("lane_conv2d", "x", x);
  EXML_CHECK_VALUE(x.dim() == 4 && weight.dim() == 4 && x.size(1) == weight.size(1),
                   "lane_conv2d: x must have shape (N, C, H, W) with C = ", weight.dim() == 4 ? weight.size(1) : 0,
                   " to match weight of shape ", weight.sizes(), ", got ", x.sizes());
  EXML_CHECK_VALUE(weight.size(0) > 0 && weight.size(1) > 0, "lane_conv2d: weight must not be empty, got shape ",
                   weight.sizes());
  EXML_CHECK_VALUE(weight.device() == x.device() && (!bias || bias->device() == x.device()),
                   "lane_conv2d: weight and bias must be on x's device ", x.device(), ", got ", weight.device());
  EXML_CHECK_VALUE(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)),
                   "lane_conv2d: bias must have shape (", weight.size(0), ",), got ", bias ? bias->sizes() : Sizes());
  EXML_CHECK_VALUE(x.scalar_type() == weight.scalar_type() && (!bias || bias->scalar_type() == x.scalar_type()),
                   "lane_conv2d: weight and bias must have x's dtype ", x.scalar_type(), ", got ", weight.scalar_type(),
                   bias ? " and " : "", bias ? torch::headeronly::toString(bias->scalar_type()) : "");
  check_padding(x.sizes(), weight.sizes(), padding);
}

// The gradient of the output, for an input and a weight of these shapes.
void check_gradient(const Tensor& grad, Sizes x, Sizes weight, Sizes padding) {
  check_pixels("lane_conv2d", "grad", grad);
  EXML_CHECK_VALUE(
      x.size() == 4 && weight.size() == 4 && x[1] == weight[1] && *std::min_element(x.begin(), x.end()) >= 0,
      "lane_conv2d: x and weight must have shapes (N, C, H, W) and (K, C, h, w), got ", x, " and ", weight);
  check_padding(x, weight, padding);
  const std::array<int64_t, 4> output{x[0], weight[0], x[2] + 2 * padding[0] - weight[2] + 1,
                                      x[3] + 2 * padding[1] - weight[3] + 1};
  EXML_CHECK_VALUE(equal(grad.sizes(), output), "lane_conv2d: grad must have shape ", Sizes(output), ", got ",
                   grad.sizes());
}

void check_same(const char* name, const Tensor& t, const Tensor& grad) {
  EXML_CHECK_VALUE(t.scalar_type() == grad.scalar_type(), "lane_conv2d: ", name, " must have grad's dtype ",
                   grad.scalar_type(), ", got ", t.scalar_type());
  check_device("lane_conv2d", name, t, "grad", grad);
}

}  // namespace

LaneConv2d lane_conv2d_arguments(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Sizes padding) {
  check(x, weight, bias, padding);
  return {x, weight, bias, padding};
}

LaneConv2dInput lane_conv2d_input_arguments(const Tensor& grad, const Tensor& weight, Sizes sizes, Sizes padding) {
  EXML_CHECK_VALUE(weight.dim() == 4, "lane_conv2d: weight must have shape (K, C, H, W), got ", weight.sizes());
  check_gradient(grad, sizes, weight.sizes(), padding);
  check_same("weight", weight, grad);
  return {grad, weight, sizes, padding};
}

LaneConv2dWeight lane_conv2d_weight_arguments(const Tensor& grad, const Tensor& x, Sizes sizes, Sizes padding) {
  EXML_CHECK_VALUE(x.dim() == 4, "lane_conv2d: x must have shape (N, C, H, W), got ", x.sizes());
  check_gradient(grad, x.sizes(), sizes, padding);
  check_same("x", x, grad);
  return {grad, x, sizes, padding};
}

Tensor library_lane_conv2d(const LaneConv2d& a) {
  const Tensor y = convolution(a.x, a.weight, a.bias, {1, 1}, a.padding, {1, 1}, 1);
  return as_contiguous(y, lane_conv2d_format(a.x, a.weight));
}

// The gradients depend on the shape of x and of the weight only, so that memory without values stands in for them.
Tensor library_lane_conv2d_input(const LaneConv2dInput& a) {
  const Tensor x = empty(a.sizes, a.grad.scalar_type(), a.grad);
  return convolution_gradient(a.grad, x, a.weight, {1, 1}, a.padding, {1, 1}, 1, true);
}

Tensor library_lane_conv2d_weight(const LaneConv2dWeight& a) {
  const Tensor weight = empty(a.sizes, a.grad.scalar_type(), a.grad);
  return convolution_gradient(a.grad, a.x, weight, {1, 1}, a.padding, {1, 1}, 1, false);
}

EXML_SCHEMAS(m) {
  m.def("_lane_conv2d_forward(Tensor x, Tensor weight, Tensor? bias, int[2] padding) -> Tensor");
  m.def("_lane_conv2d_input(Tensor grad, Tensor weight, int[] sizes, int[2] padding) -> Tensor");
  m.def("_lane_conv2d_weight(Tensor grad, Tensor x, int[] sizes, int[2] padding) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(exml, CompositeExplicitAutograd, m) {
  m.impl("_lane_conv2d_forward", checked<&lane_conv2d_arguments, &library_lane_conv2d>);
  m.impl("_lane_conv2d_input", checked<&lane_conv2d_input_arguments, &library_lane_conv2d_input>);
  m.impl("_lane_conv2d_weight", checked<&lane_conv2d_weight_arguments, &library_lane_conv2d_weight>);
}

}  // namespace exml
