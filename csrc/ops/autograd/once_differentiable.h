// Backward ops have no derivative. A second derivative raises an error instead of being silently wrong.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

namespace exml {

// Calls `compute` without autograd.
template <typename F>
auto below_autograd(F compute) {
  at::AutoDispatchBelowADInplaceOrView guard;
  return compute();
}

struct OnceDifferentiable : torch::autograd::Function<OnceDifferentiable> {
  // Joins `result`, which was computed from `grad` and `x`, to their graph by a node whose derivative raises an error.
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

// Calls `compute`, whose result depends on `grad` and `x`. The derivatives of the result raise an error.
template <typename F>
at::Tensor once_differentiable(const std::string& op, const at::Tensor& grad, const at::Tensor& x, F compute) {
  return OnceDifferentiable::apply(grad, x, below_autograd(compute), op);
}

}  // namespace exml
