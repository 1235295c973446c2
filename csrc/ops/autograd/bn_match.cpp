#include "ops/bn_match.h"

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

std::tuple<Tensor, Tensor> forward_op(const Tensor& x, const Tensor& mean, const Tensor& var, std::string_view distance,
                                      std::string_view moment) {
  static const auto op = find_op<decltype(forward_op)>("exml::_bn_match_forward");
  return op.call(x, mean, var, distance, moment);
}

Tensor backward_op(const Tensor& grad, const Tensor& x, const Tensor& coefficients) {
  static const auto op = find_op<decltype(backward_op)>("exml::_bn_match_backward");
  return op.call(grad, x, coefficients);
}

struct BNMatch : torch::autograd::Function<BNMatch> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& mean, const Tensor& var,
                        std::string_view distance, std::string_view moment) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, coefficients] = forward_op(x, mean, var, distance, moment);
    ctx->save_for_backward({x, coefficients});
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    return {backward_op(grads[0], saved[0], saved[1]), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor bn_match_autograd(const Tensor& x, const Tensor& mean, const Tensor& var, std::string_view distance,
                         std::string_view moment) {
  check_no_grad("bn_match", "mean", mean);
  check_no_grad("bn_match", "var", var);
  return BNMatch::apply(x, mean, var, distance, moment);
}

Tensor bn_match_without_autograd(const Tensor& x, const Tensor& mean, const Tensor& var, std::string_view distance,
                                 std::string_view moment) {
  return std::get<0>(forward_op(x, mean, var, distance, moment));
}

Tensor backward_autograd(const Tensor& grad, const Tensor& x, const Tensor& coefficients) {
  return once_differentiable("bn_match", grad, x, [&] { return backward_op(grad, x, coefficients); });
}

TORCH_LIBRARY_IMPL(exml, CompositeExplicitAutograd, m) { m.impl("bn_match", &bn_match_without_autograd); }

TORCH_LIBRARY_IMPL(exml, Autograd, m) {
  m.impl("bn_match", &bn_match_autograd);
  m.impl("_bn_match_backward", &backward_autograd);
}

}  // namespace
}  // namespace exml
