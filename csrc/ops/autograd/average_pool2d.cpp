#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd/dispatcher.h"
#include "ops/autograd/once_differentiable.h"

namespace exml {
namespace {

using at::IntArrayRef;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor forward_op(const Tensor& x, IntArrayRef kernel) {
  static const auto op = find_op<decltype(forward_op)>("exml::_average_pool2d_forward");
  return op.call(x, kernel);
}

Tensor backward_op(const Tensor& grad, IntArrayRef sizes, IntArrayRef kernel, bool channels_last) {
  static const auto op = find_op<decltype(backward_op)>("exml::_average_pool2d_backward");
  return op.call(grad, sizes, kernel, channels_last);
}

struct AveragePool2d : torch::autograd::Function<AveragePool2d> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, IntArrayRef kernel) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->saved_data["sizes"] = x.sizes();
    ctx->saved_data["kernel"] = kernel;
    ctx->saved_data["channels_last"] = x.is_contiguous(at::MemoryFormat::ChannelsLast);
    return forward_op(x, kernel);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    auto& saved = ctx->saved_data;
    return {backward_op(grads[0], saved["sizes"].toIntVector(), saved["kernel"].toIntVector(),
                        saved["channels_last"].toBool()),
            Tensor()};
  }
};

Tensor average_pool2d_autograd(const Tensor& x, IntArrayRef kernel) { return AveragePool2d::apply(x, kernel); }

Tensor backward_autograd(const Tensor& grad, IntArrayRef sizes, IntArrayRef kernel, bool channels_last) {
  return once_differentiable("average_pool2d", grad, grad,
                             [&] { return backward_op(grad, sizes, kernel, channels_last); });
}

TORCH_LIBRARY_IMPL(exml, CompositeExplicitAutograd, m) { m.impl("average_pool2d", &forward_op); }

TORCH_LIBRARY_IMPL(exml, Autograd, m) {
  m.impl("average_pool2d", &average_pool2d_autograd);
  m.impl("_average_pool2d_backward", &backward_autograd);
}

}  // namespace
}  // namespace exml
