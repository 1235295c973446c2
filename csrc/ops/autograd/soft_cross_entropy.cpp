#include "ops/soft_cross_entropy.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd/dispatcher.h"
#include "ops/autograd/once_differentiable.h"
#include "ops/checks.h"

namespace exml {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::tuple<Tensor, Tensor> forward_op(const Tensor& logits, const Tensor& target, double temperature,
                                      std::string_view reduction) {
  static const auto op = find_op<decltype(forward_op)>("exml::_soft_cross_entropy_forward");
  return op.call(logits, target, temperature, reduction);
}

Tensor backward_op(const Tensor& grad, const Tensor& logits, const Tensor& target, const Tensor& lse,
                   double temperature, std::string_view reduction) {
  static const auto op = find_op<decltype(backward_op)>("exml::_soft_cross_entropy_backward");
  return op.call(grad, logits, target, lse, temperature, reduction);
}

struct SoftCrossEntropy : torch::autograd::Function<SoftCrossEntropy> {
  static Tensor forward(AutogradContext* ctx, const Tensor& logits, const Tensor& target, double temperature,
                        std::string_view reduction) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, lse] = forward_op(logits, target, temperature, reduction);
    ctx->save_for_backward({logits, target, lse});
    ctx->saved_data["temperature"] = temperature;
    ctx->saved_data["reduction"] = std::string(reduction);
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor grad = backward_op(grads[0], saved[0], saved[1], saved[2], ctx->saved_data["temperature"].toDouble(),
                                    ctx->saved_data["reduction"].toStringRef());
    return {grad, Tensor(), Tensor(), Tensor()};
  }
};

Tensor soft_cross_entropy_autograd(const Tensor& logits, const Tensor& target, double temperature,
                                   std::string_view reduction) {
  check_no_grad("soft_cross_entropy", "target", target);
  return SoftCrossEntropy::apply(logits, target, temperature, reduction);
}

Tensor soft_cross_entropy_without_autograd(const Tensor& logits, const Tensor& target, double temperature,
                                           std::string_view reduction) {
  return std::get<0>(forward_op(logits, target, temperature, reduction));
}

Tensor backward_autograd(const Tensor& grad, const Tensor& logits, const Tensor& target, const Tensor& lse,
                         double temperature, std::string_view reduction) {
  return once_differentiable("soft_cross_entropy", grad, logits,
                             [&] { return backward_op(grad, logits, target, lse, temperature, reduction); });
}

TORCH_LIBRARY_IMPL(exml, CompositeExplicitAutograd, m) {
  m.impl("soft_cross_entropy", &soft_cross_entropy_without_autograd);
}

TORCH_LIBRARY_IMPL(exml, Autograd, m) {
  m.impl("soft_cross_entropy", &soft_cross_entropy_autograd);
  m.impl("_soft_cross_entropy_backward", &backward_autograd);
}

}  // namespace
}  // namespace exml
