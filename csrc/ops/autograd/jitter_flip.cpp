#include "ops/jitter_flip.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd/dispatcher.h"

namespace exml {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor jitter_flip_op(const Tensor& x, const Tensor& shift, const Tensor& flip, at::ScalarType dtype,
                      at::MemoryFormat memory_format, std::string_view border, bool adjoint) {
  static const auto op = find_op<decltype(jitter_flip_op)>("exml::_jitter_flip");
  return op.call(x, shift, flip, dtype, memory_format, border, adjoint);
}

// The op is linear in x: its derivative is its adjoint, and derivatives of any order exist.
struct JitterFlipFunction : torch::autograd::Function<JitterFlipFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& shift, const Tensor& flip,
                        at::ScalarType dtype, at::MemoryFormat memory_format, std::string_view border, bool adjoint) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({shift, flip});
    ctx->saved_data["dtype"] = static_cast<int64_t>(x.scalar_type());
    ctx->saved_data["memory_format"] = static_cast<int64_t>(x.suggest_memory_format());
    ctx->saved_data["border"] = std::string(border);
    ctx->saved_data["adjoint"] = adjoint;
    return jitter_flip_op(x, shift, flip, dtype, memory_format, border, adjoint);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const Tensor grad = jitter_flip_op(grads[0], saved[0], saved[1], static_cast<at::ScalarType>(data["dtype"].toInt()),
                                       static_cast<at::MemoryFormat>(data["memory_format"].toInt()),
                                       data["border"].toStringRef(), !data["adjoint"].toBool());
    return {grad, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor jitter_flip_autograd(const Tensor& x, const Tensor& shift, const Tensor& flip, at::ScalarType dtype,
                            at::MemoryFormat memory_format, std::string_view border, bool adjoint) {
  return JitterFlipFunction::apply(x, shift, flip, dtype, memory_format, border, adjoint);
}

TORCH_LIBRARY_IMPL(exml, Autograd, m) { m.impl("_jitter_flip", &jitter_flip_autograd); }

}  // namespace
}  // namespace exml
