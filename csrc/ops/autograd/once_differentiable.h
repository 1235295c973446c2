// Backward ops have no derivative of their own here: a second one raises instead of being silently wrong.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

namespace exml {

// What `compute` returns where autograd does not follow it.
template <typename F>
auto below_autograd(F compute) {
  at::AutoDispatchBelowADInplaceOrView guard;
  return compute();
}

struct OnceDifferentiable : torch::autograd::Function<OnceDifferentiable> {
  // `result`, computed from `grad` and `x`, joined to their graph by a node that refuses to be differentiated.
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& grad, const at::Tensor& x,
                            const at::Tensor& result, const std::string& op) {
    ctx->saved_data["op"] = op;
    return result;
  }

  // The same for several results of several tensors.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const at::TensorList& /*inputs*/,
                                                const torch::autograd::variable_list& results, const std::string& op) {
    ctx->saved_data["op"] = op;
    return results;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        false, ctx->saved_data["op"].toStringRef(),
        ": second derivatives are not implemented; use exml_fast.ops.reference where you need them");
  }
};

// What `compute` makes of `grad` and `x`; its derivatives raise.
template <typename F>
at::Tensor once_differentiable(const std::string& op, const at::Tensor& grad, const at::Tensor& x, F compute) {
  return OnceDifferentiable::apply(grad, x, below_autograd(compute), op);
}

}  // namespace exml
