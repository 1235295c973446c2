#include "ops/frozen_bn_act.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd/dispatcher.h"
#include "ops/autograd/once_differentiable.h"
#include "ops/checks.h"

namespace exml {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::tuple<Tensor, Tensor, Tensor> forward_op(const Tensor& x, const Tensor& scale, const Tensor& shift,
                                              const OptionalTensor& residual, std::string_view activation,
                                              double negative_slope) {
  static const auto op = find_op<decltype(forward_op)>("exml::_frozen_bn_act_forward");
  return op.call(x, scale, shift, residual, activation, negative_slope);
}

std::vector<Tensor> backward_op(const OptionalTensor& grad_y, const OptionalTensor& grad_mean,
                                const OptionalTensor& grad_var, const Tensor& x, const Tensor& scale,
                                const Tensor& shift, const OptionalTensor& residual, const Tensor& mean,
                                std::string_view activation, double negative_slope, bool with_residual) {
  static const auto op = find_op<decltype(backward_op)>("exml::_frozen_bn_act_backward");
  return op.call(grad_y, grad_mean, grad_var, x, scale, shift, residual, mean, activation, negative_slope,
                 with_residual);
}

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

struct FrozenBNActFunction : torch::autograd::Function<FrozenBNActFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& scale, const Tensor& shift,
                               const OptionalTensor& residual, std::string_view activation, double negative_slope) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [y, mean, var] = forward_op(x, scale, shift, residual, activation, negative_slope);
    ctx->set_materialize_grads(false);
    ctx->saved_data["activation"] = std::string(activation);
    ctx->saved_data["negative_slope"] = negative_slope;
    // Without an activation, the gradient does not depend on the values of the residual.
    const bool given = residual && residual->defined(), needed = given && activation != "none";
    ctx->saved_data["residual"] = given;
    ctx->save_for_backward({x, scale, shift, mean, needed ? *residual : Tensor()});
    return {y, mean, var};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    const bool wanted = ctx->saved_data["residual"].toBool() && grads[0].defined() && ctx->needs_input_grad(3);
    const bool with_residual = wanted && activation != "none";
    const auto results = backward_op(optional(grads[0]), optional(grads[1]), optional(grads[2]), saved[0], saved[1],
                                     saved[2], optional(saved[4]), saved[3], activation,
                                     ctx->saved_data["negative_slope"].toDouble(), with_residual);
    return {results[0], Tensor(), Tensor(), with_residual ? results[1] : wanted ? grads[0] : Tensor(),
            Tensor(),   Tensor()};
  }
};

std::tuple<Tensor, Tensor, Tensor> autograd(const Tensor& x, const Tensor& scale, const Tensor& shift,
                                            const OptionalTensor& residual, std::string_view activation,
                                            double negative_slope) {
  check_no_grad("frozen_bn_act", "scale", scale);
  check_no_grad("frozen_bn_act", "shift", shift);
  const auto results = FrozenBNActFunction::apply(x, scale, shift, residual, activation, negative_slope);
  return {results[0], results[1], results[2]};
}

std::vector<Tensor> backward_autograd(const OptionalTensor& grad_y, const OptionalTensor& grad_mean,
                                      const OptionalTensor& grad_var, const Tensor& x, const Tensor& scale,
                                      const Tensor& shift, const OptionalTensor& residual, const Tensor& mean,
                                      std::string_view activation, double negative_slope, bool with_residual) {
  std::vector<Tensor> results = below_autograd([&] {
    return backward_op(grad_y, grad_mean, grad_var, x, scale, shift, residual, mean, activation, negative_slope,
                       with_residual);
  });
  const Tensor& grad = grad_y ? *grad_y : grad_mean ? *grad_mean : grad_var ? *grad_var : x;
  for (Tensor& result : results) result = OnceDifferentiable::apply(grad, x, result, "frozen_bn_act");
  return results;
}

TORCH_LIBRARY_IMPL(exml, CompositeExplicitAutograd, m) { m.impl("frozen_bn_act", &forward_op); }

TORCH_LIBRARY_IMPL(exml, Autograd, m) {
  m.impl("frozen_bn_act", &autograd);
  m.impl("_frozen_bn_act_backward", &backward_autograd);
}

}  // namespace
}  // namespace exml
