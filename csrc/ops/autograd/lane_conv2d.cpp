#include <ATen/ops/sum.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd/dispatcher.h"
#include "ops/autograd/once_differentiable.h"

namespace exml {
namespace {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor forward_op(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, IntArrayRef padding) {
  static const auto op = find_op<decltype(forward_op)>("exml::_lane_conv2d_forward");
  return op.call(x, weight, bias, padding);
}

Tensor input_op(const Tensor& grad, const Tensor& weight, IntArrayRef sizes, IntArrayRef padding) {
  static const auto op = find_op<decltype(input_op)>("exml::_lane_conv2d_input");
  return op.call(grad, weight, sizes, padding);
}

Tensor weight_op(const Tensor& grad, const Tensor& x, IntArrayRef sizes, IntArrayRef padding) {
  static const auto op = find_op<decltype(weight_op)>("exml::_lane_conv2d_weight");
  return op.call(grad, x, sizes, padding);
}

struct LaneConv2d : torch::autograd::Function<LaneConv2d> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                        IntArrayRef padding) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, weight});
    ctx->saved_data["padding"] = padding;
    ctx->saved_data["biased"] = bias.has_value();
    return forward_op(x, weight, bias, padding);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto padding = ctx->saved_data["padding"].toIntVector();
    variable_list result(4);
    if (ctx->needs_input_grad(0)) result[0] = input_op(grads[0], saved[1], saved[0].sizes(), padding);
    if (ctx->needs_input_grad(1)) result[1] = weight_op(grads[0], saved[0], saved[1].sizes(), padding);
    if (ctx->saved_data["biased"].toBool() && ctx->needs_input_grad(2)) result[2] = grads[0].sum({0, 2, 3});
    return result;
  }
};

Tensor lane_conv2d_autograd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, IntArrayRef padding) {
  return LaneConv2d::apply(x, weight, bias, padding);
}

Tensor input_autograd(const Tensor& grad, const Tensor& weight, IntArrayRef sizes, IntArrayRef padding) {
  return once_differentiable("lane_conv2d", grad, weight, [&] { return input_op(grad, weight, sizes, padding); });
}

Tensor weight_autograd(const Tensor& grad, const Tensor& x, IntArrayRef sizes, IntArrayRef padding) {
  return once_differentiable("lane_conv2d", grad, x, [&] { return weight_op(grad, x, sizes, padding); });
}

TORCH_LIBRARY_IMPL(exml, CompositeExplicitAutograd, m) { m.impl("lane_conv2d", &forward_op); }

TORCH_LIBRARY_IMPL(exml, Autograd, m) {
  m.impl("lane_conv2d", &lane_conv2d_autograd);
  m.impl("_lane_conv2d_input", &input_autograd);
  m.impl("_lane_conv2d_weight", &weight_autograd);
}

}  // namespace
}  // namespace exml
