#include "ops/jensen_shannon.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd/dispatcher.h"
#include "ops/autograd/once_differentiable.h"

namespace exml {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::tuple<Tensor, Tensor, Tensor> forward_op(const Tensor& teacher_logits, const Tensor& student_logits,
                                              double temperature, std::string_view reduction) {
  static const auto op = find_op<decltype(forward_op)>("exml::_jensen_shannon_forward");
  return op.call(teacher_logits, student_logits, temperature, reduction);
}

Tensor backward_op(const Tensor& grad, const Tensor& logits, const Tensor& other_logits, const Tensor& lse,
                   const Tensor& other_lse, double temperature, std::string_view reduction) {
  static const auto op = find_op<decltype(backward_op)>("exml::_jensen_shannon_backward");
  return op.call(grad, logits, other_logits, lse, other_lse, temperature, reduction);
}

struct JensenShannon : torch::autograd::Function<JensenShannon> {
  static Tensor forward(AutogradContext* ctx, const Tensor& teacher_logits, const Tensor& student_logits,
                        double temperature, std::string_view reduction) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, teacher_lse, student_lse] = forward_op(teacher_logits, student_logits, temperature, reduction);
    ctx->save_for_backward({teacher_logits, student_logits, teacher_lse, student_lse});
    ctx->saved_data["temperature"] = temperature;
    ctx->saved_data["reduction"] = std::string(reduction);
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const double temperature = ctx->saved_data["temperature"].toDouble();
    const std::string& reduction = ctx->saved_data["reduction"].toStringRef();
    const auto gradient = [&](int of, int other) {
      if (!ctx->needs_input_grad(of)) return Tensor();
      return backward_op(grads[0], saved[of], saved[other], saved[2 + of], saved[2 + other], temperature, reduction);
    };
    return {gradient(0, 1), gradient(1, 0), Tensor(), Tensor()};
  }
};

Tensor jensen_shannon_autograd(const Tensor& teacher_logits, const Tensor& student_logits, double temperature,
                               std::string_view reduction) {
  return JensenShannon::apply(teacher_logits, student_logits, temperature, reduction);
}

Tensor jensen_shannon_without_autograd(const Tensor& teacher_logits, const Tensor& student_logits, double temperature,
                                       std::string_view reduction) {
  return std::get<0>(forward_op(teacher_logits, student_logits, temperature, reduction));
}

Tensor backward_autograd(const Tensor& grad, const Tensor& logits, const Tensor& other_logits, const Tensor& lse,
                         const Tensor& other_lse, double temperature, std::string_view reduction) {
  Tensor result =
      below_autograd([&] { return backward_op(grad, logits, other_logits, lse, other_lse, temperature, reduction); });
  const variable_list inputs{grad, logits, other_logits};
  return OnceDifferentiable::apply(at::TensorList(inputs), variable_list{result}, "jensen_shannon")[0];
}

TORCH_LIBRARY_IMPL(exml, CompositeExplicitAutograd, m) { m.impl("jensen_shannon", &jensen_shannon_without_autograd); }

TORCH_LIBRARY_IMPL(exml, Autograd, m) {
  m.impl("jensen_shannon", &jensen_shannon_autograd);
  m.impl("_jensen_shannon_backward", &backward_autograd);
}

}  // namespace
}  // namespace exml
