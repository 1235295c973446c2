#include "ops/adam_clip.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <cmath>

#include "ops/autograd/dispatcher.h"
#include "ops/checks.h"

namespace exml {
namespace {

using at::Tensor;

// State tensors are written in place, so that a copy in x's layout would not do.
void check_state(const char* name, const Tensor& t, const Tensor& x, const ChannelLayout& layout) {
  TORCH_CHECK_VALUE(t.scalar_type() == x.scalar_type() && t.sizes() == x.sizes(), "adam_clip_: ", name,
                    " must have x's dtype and shape, ", x.scalar_type(), " ", x.sizes(), ", got ", t.scalar_type(), " ",
                    t.sizes());
  check_device("adam_clip_", name, t, "x", x);
  const auto [dense, own] = with_channel_layout(t);
  TORCH_CHECK_VALUE(dense.is_same(t) && own.channels_last == layout.channels_last, "adam_clip_: ", name,
                    " must have x's memory format, strides ", x.strides(), ", got ", t.strides());
}

void check_scalar(const char* name, const Tensor& t, const Tensor& x) {
  TORCH_CHECK_VALUE(t.dim() == 0, "adam_clip_: ", name, " must be a scalar, got shape ", t.sizes());
  check_device("adam_clip_", name, t, "x", x);
}

// What is written must be no other argument's memory.
void check_overlap(const Tensor& x, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                   std::initializer_list<std::pair<const char*, const Tensor*>> others) {
  const std::array<std::pair<const char*, const Tensor*>, 3> written{
      {{"x", &x}, {"exp_avg", &exp_avg}, {"exp_avg_sq", &exp_avg_sq}}};
  const auto check_pair = [](const auto& a, const auto& b) {
    const auto status = at::get_overlap_status(*a.second, *b.second);
    TORCH_CHECK_VALUE(status != at::MemOverlapStatus::Full && status != at::MemOverlapStatus::Partial,
                      "adam_clip_: ", a.first, " is written and must not share memory with ", b.first);
  };
  for (size_t i = 0; i < written.size(); ++i) {
    for (size_t j = i + 1; j < written.size(); ++j) check_pair(written[i], written[j]);
    for (const auto& other : others)
      if (other.second && other.second->defined()) check_pair(written[i], other);
  }
}

Tensor checked_bound(const char* name, const std::optional<Tensor>& bound, const Tensor& x) {
  if (!bound) return {};
  TORCH_CHECK_VALUE(bound->dim() == 1 && bound->size(0) == x.size(1), "adam_clip_: ", name, " must have shape (C,) = (",
                    x.size(1), ",), got ", bound->sizes());
  TORCH_CHECK_VALUE(bound->is_floating_point(), "adam_clip_: ", name, " must be floating point, got ",
                    bound->scalar_type());
  check_device("adam_clip_", name, *bound, "x", x);
  return bound->to(x.scalar_type()).contiguous();
}

}  // namespace

AdamClip adam_clip_arguments(const Tensor& x, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                             const Tensor& step, const Tensor& lr, double beta1, double beta2, double eps,
                             const std::optional<Tensor>& low, const std::optional<Tensor>& high,
                             const std::optional<Tensor>& active) {
  TORCH_CHECK_VALUE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble,
                    "adam_clip_: x must be float32 or float64, got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.dim() >= 2 && x.dim() <= 5, "adam_clip_: x must have 2 to 5 dimensions (N, C, ...), got shape ",
                    x.sizes());
  const auto [dense, layout] = with_channel_layout(x);
  TORCH_CHECK_VALUE(dense.is_same(x), "adam_clip_: x is written in place and must be contiguous or channels_last, got ",
                    "shape ", x.sizes(), " with strides ", x.strides());
  check_state("exp_avg", exp_avg, x, layout);
  check_state("exp_avg_sq", exp_avg_sq, x, layout);
  check_pixels("adam_clip_", "grad", grad);
  TORCH_CHECK_VALUE(grad.sizes() == x.sizes(), "adam_clip_: grad must have x's shape ", x.sizes(), ", got ",
                    grad.sizes());
  check_device("adam_clip_", "grad", grad, "x", x);
  check_scalar("step", step, x);
  TORCH_CHECK_VALUE(step.scalar_type() == at::kLong || step.scalar_type() == at::kFloat,
                    "adam_clip_: step must be int64 or float32, got ", step.scalar_type());
  check_scalar("lr", lr, x);
  TORCH_CHECK_VALUE(lr.is_floating_point(), "adam_clip_: lr must be floating point, got ", lr.scalar_type());
  TORCH_CHECK_VALUE(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1, "adam_clip_: betas must be in [0, 1), got ",
                    beta1, " and ", beta2);
  TORCH_CHECK_VALUE(eps >= 0 && std::isfinite(eps), "adam_clip_: eps must be finite and not negative, got ", eps);
  check_overlap(x, exp_avg, exp_avg_sq,
                {{"grad", &grad},
                 {"step", &step},
                 {"lr", &lr},
                 {"low", low ? &*low : nullptr},
                 {"high", high ? &*high : nullptr},
                 {"active", active ? &*active : nullptr}});
  if (active) {
    TORCH_CHECK_VALUE(active->scalar_type() == at::kBool && active->dim() == 1 && active->size(0) == x.size(0),
                      "adam_clip_: active must be bool of shape (N,) = (", x.size(0), ",), got ", active->scalar_type(),
                      " ", active->sizes());
    check_device("adam_clip_", "active", *active, "x", x);
  }
  const bool readable =
      grad.scalar_type() == x.scalar_type() || (grad.scalar_type() == at::kBFloat16 && x.scalar_type() == at::kFloat);
  const auto [dense_grad, grad_layout] = with_channel_layout(readable ? grad : grad.to(x.scalar_type()));
  return {x,
          dense_grad,
          exp_avg,
          exp_avg_sq,
          step,
          lr.to(x.scalar_type()),
          checked_bound("low", low, x),
          checked_bound("high", high, x),
          active ? active->contiguous() : Tensor(),
          layout,
          grad_layout.channels_last != layout.channels_last,
          adam_rates(beta1, beta2, eps)};
}

namespace {

// torch's own fallback for views that are negated, conjugated or zero without memory assumes that an op returns what it
// mutates; without a result it corrupts the stack. Here such constants are made real, and such states are refused.
void resolve_views(const Tensor& x, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                   const Tensor& step, const Tensor& lr, double beta1, double beta2, double eps,
                   const std::optional<Tensor>& low, const std::optional<Tensor>& high,
                   const std::optional<Tensor>& active) {
  static const auto op = find_op<decltype(resolve_views)>("exml::adam_clip_");
  const auto written = [](const char* name, const Tensor& t) {
    TORCH_CHECK_VALUE(!t.is_neg() && !t.is_conj() && !t._is_zerotensor(), "adam_clip_: ", name,
                      " is written in place and must have memory of its own, got a view that is negated, conjugated or "
                      "zero");
  };
  written("x", x);
  written("exp_avg", exp_avg);
  written("exp_avg_sq", exp_avg_sq);
  const auto real = [](const Tensor& t) {
    return t._is_zerotensor() ? at::zeros(t.sizes(), t.options()) : t.resolve_conj().resolve_neg();
  };
  const auto real_or_none = [&](const std::optional<Tensor>& t) {
    return t && t->defined() ? std::optional<Tensor>(real(*t)) : t;
  };
  op.call(x, real(grad), exp_avg, exp_avg_sq, real(step), real(lr), beta1, beta2, eps, real_or_none(low),
          real_or_none(high), real_or_none(active));
}

}  // namespace

TORCH_LIBRARY_IMPL(exml, Negative, m) { m.impl("adam_clip_", &resolve_views); }
TORCH_LIBRARY_IMPL(exml, Conjugate, m) { m.impl("adam_clip_", &resolve_views); }
TORCH_LIBRARY_IMPL(exml, ZeroTensor, m) { m.impl("adam_clip_", &resolve_views); }

// The schema has no result, because torch.compile handles an op that returns what it mutates less well. The Python
// wrapper returns x.
TORCH_LIBRARY_FRAGMENT(exml, m) {
  m.def(
      "adam_clip_(Tensor(a!) x, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor step, Tensor lr, "
      "float beta1, float beta2, float eps, Tensor? low=None, Tensor? high=None, Tensor? active=None) -> ()");
}

}  // namespace exml
