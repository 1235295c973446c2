#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd/dispatcher.h"
#include "ops/autograd/once_differentiable.h"
#include "ops/checks.h"

namespace exml {
namespace {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor forward_op(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, IntArrayRef stride,
                  IntArrayRef padding, IntArrayRef dilation, int64_t groups, const OptionalTensor& forward_weight,
                  std::string_view forward_layout, bool lanes) {
  static const auto op = find_op<decltype(forward_op)>("exml::_frozen_conv2d_forward");
  return op.call(x, weight, bias, stride, padding, dilation, groups, forward_weight, forward_layout, lanes);
}

Tensor backward_op(const Tensor& grad, const Tensor& weight, IntArrayRef sizes, bool channels_last, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, int64_t groups, const OptionalTensor& adjoint_weight,
                   std::string_view adjoint_layout, std::string_view adjoint) {
  static const auto op = find_op<decltype(backward_op)>("exml::_frozen_conv2d_backward");
  return op.call(grad, weight, sizes, channels_last, stride, padding, dilation, groups, adjoint_weight, adjoint_layout,
                 adjoint);
}

struct FrozenConv2d : torch::autograd::Function<FrozenConv2d> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                        IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                        const OptionalTensor& forward_weight, std::string_view forward_layout, bool lanes,
                        const OptionalTensor& adjoint_weight, std::string_view adjoint_layout,
                        std::string_view adjoint) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto& saved = ctx->saved_data;
    saved["sizes"] = x.sizes();
    saved["channels_last"] = x.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
    saved["stride"] = stride;
    saved["padding"] = padding;
    saved["dilation"] = dilation;
    saved["groups"] = groups;
    saved["weight"] = weight;  // a constant: no version counter to watch, and oneDNN's tensors have none
    saved["adjoint_weight"] = adjoint_weight;
    saved["adjoint_layout"] = std::string(adjoint_layout);
    saved["adjoint"] = std::string(adjoint);
    return forward_op(x, weight, bias, stride, padding, dilation, groups, forward_weight, forward_layout, lanes);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    auto& saved = ctx->saved_data;
    variable_list result(13);
    result[0] =
        backward_op(grads[0], saved["weight"].toTensor(), saved["sizes"].toIntVector(), saved["channels_last"].toBool(),
                    saved["stride"].toIntVector(), saved["padding"].toIntVector(), saved["dilation"].toIntVector(),
                    saved["groups"].toInt(), saved["adjoint_weight"].toOptional<Tensor>(),
                    saved["adjoint_layout"].toStringView(), saved["adjoint"].toStringView());
    return result;
  }
};

Tensor frozen_conv2d_autograd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, IntArrayRef stride,
                              IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                              const OptionalTensor& forward_weight, std::string_view forward_layout, bool lanes,
                              const OptionalTensor& adjoint_weight, std::string_view adjoint_layout,
                              std::string_view adjoint) {
  check_no_grad("frozen_conv2d", "weight", weight);
  if (bias) check_no_grad("frozen_conv2d", "bias", *bias);
  return FrozenConv2d::apply(x, weight, bias, stride, padding, dilation, groups, forward_weight, forward_layout, lanes,
                             adjoint_weight, adjoint_layout, adjoint);
}

Tensor frozen_conv2d_without_autograd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                      IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                                      const OptionalTensor& forward_weight, std::string_view forward_layout, bool lanes,
                                      const OptionalTensor&, std::string_view, std::string_view) {
  return forward_op(x, weight, bias, stride, padding, dilation, groups, forward_weight, forward_layout, lanes);
}

Tensor backward_autograd(const Tensor& grad, const Tensor& weight, IntArrayRef sizes, bool channels_last,
                         IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                         const OptionalTensor& adjoint_weight, std::string_view adjoint_layout,
                         std::string_view adjoint) {
  return once_differentiable("frozen_conv2d", grad, grad, [&] {
    return backward_op(grad, weight, sizes, channels_last, stride, padding, dilation, groups, adjoint_weight,
                       adjoint_layout, adjoint);
  });
}

TORCH_LIBRARY_IMPL(exml, CompositeExplicitAutograd, m) { m.impl("frozen_conv2d", &frozen_conv2d_without_autograd); }

TORCH_LIBRARY_IMPL(exml, Autograd, m) {
  m.impl("frozen_conv2d", &frozen_conv2d_autograd);
  m.impl("_frozen_conv2d_backward", &backward_autograd);
}

}  // namespace
}  // namespace exml
