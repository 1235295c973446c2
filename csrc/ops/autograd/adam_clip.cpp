#include "ops/adam_clip.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include "ops/autograd/dispatcher.h"

namespace exml {
namespace {

using at::Tensor;

void step_autograd(const Tensor& x, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                   const Tensor& step, const Tensor& lr, double beta1, double beta2, double eps,
                   const std::optional<Tensor>& low, const std::optional<Tensor>& high,
                   const std::optional<Tensor>& active) {
  static const auto op = find_op<decltype(step_autograd)>("exml::adam_clip_");
  TORCH_CHECK(!(at::GradMode::is_enabled() && x.requires_grad()),
              "adam_clip_: x requires grad and is written in place: call it under torch.no_grad()");
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    op.call(x, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, low, high, active);
  }
  // A graph that saved one of these tensors then raises an error.
  for (const Tensor* t : {&x, &exp_avg, &exp_avg_sq})
    if (!t->is_inference()) t->unsafeGetTensorImpl()->bump_version();
}

TORCH_LIBRARY_IMPL(exml, Autograd, m) { m.impl("adam_clip_", &step_autograd); }

}  // namespace
}  // namespace exml
