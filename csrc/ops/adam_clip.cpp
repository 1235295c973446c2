#include "ops/adam_clip.h"

#include <cmath>
#include <utility>
#include <vector>

#include "ops/checks.h"
#include "ops/schema.h"

namespace exml {
namespace {

// State tensors are written in place, so that a copy in x's layout would not do.
void check_state(const char* name, const Tensor& t, const Tensor& x, const ChannelLayout& layout) {
  EXML_CHECK_VALUE(t.scalar_type() == x.scalar_type() && equal(t.sizes(), x.sizes()), "adam_clip_: ", name,
                   " must have x's dtype and shape, ", x.scalar_type(), " ", x.sizes(), ", got ", t.scalar_type(), " ",
                   t.sizes());
  check_device("adam_clip_", name, t, "x", x);
  const auto [dense, own] = with_channel_layout(t);
  EXML_CHECK_VALUE(dense.get() == t.get() && own.channels_last == layout.channels_last, "adam_clip_: ", name,
                   " must have x's memory format, strides ", x.strides(), ", got ", t.strides());
}

void check_scalar(const char* name, const Tensor& t, const Tensor& x) {
  EXML_CHECK_VALUE(t.dim() == 0, "adam_clip_: ", name, " must be a scalar, got shape ", t.sizes());
  check_device("adam_clip_", name, t, "x", x);
}

// The addresses between which the values of t lie.
std::pair<const char*, const char*> extent(const Tensor& t) {
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  const char* first = static_cast<const char*>(t.const_data_ptr());
  return {first, first + (last + 1) * t.element_size()};
}

// What is written must be no other argument's memory.
void check_overlap(const Tensor& x, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                   std::initializer_list<std::pair<const char*, const Tensor*>> others) {
  std::vector<std::pair<const char*, const Tensor*>> all{{"x", &x}, {"exp_avg", &exp_avg}, {"exp_avg_sq", &exp_avg_sq}};
  const size_t written = all.size();
  for (const auto& other : others)
    if (other.second && other.second->numel() > 0) all.push_back(other);
  if (x.numel() == 0) return;
  for (size_t i = 0; i < written; ++i) {
    for (size_t j = i + 1; j < all.size(); ++j) {
      const auto a = extent(*all[i].second), b = extent(*all[j].second);
      EXML_CHECK_VALUE(a.second <= b.first || b.second <= a.first, "adam_clip_: ", all[i].first,
                       " is written and must not share memory with ", all[j].first);
    }
  }
}

OptionalTensor checked_bound(const char* name, const OptionalTensor& bound, const Tensor& x) {
  if (!bound) return {};
  EXML_CHECK_VALUE(bound->dim() == 1 && bound->size(0) == x.size(1), "adam_clip_: ", name, " must have shape (C,) = (",
                   x.size(1), ",), got ", bound->sizes());
  EXML_CHECK_VALUE(is_floating_point(*bound), "adam_clip_: ", name, " must be floating point, got ",
                   bound->scalar_type());
  check_device("adam_clip_", name, *bound, "x", x);
  return as_contiguous(as_type(*bound, x.scalar_type()));
}

}  // namespace

AdamClip adam_clip_arguments(const Tensor& x, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                             const Tensor& step, const Tensor& lr, double beta1, double beta2, double eps,
                             const OptionalTensor& low, const OptionalTensor& high, const OptionalTensor& active) {
  EXML_CHECK_VALUE(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                   "adam_clip_: x must be float32 or float64, got ", x.scalar_type());
  EXML_CHECK_VALUE(x.dim() >= 2 && x.dim() <= 5, "adam_clip_: x must have 2 to 5 dimensions (N, C, ...), got shape ",
                   x.sizes());
  const auto [dense, layout] = with_channel_layout(x);
  EXML_CHECK_VALUE(dense.get() == x.get(),
                   "adam_clip_: x is written in place and must be contiguous or channels_last, got ", "shape ",
                   x.sizes(), " with strides ", x.strides());
  check_state("exp_avg", exp_avg, x, layout);
  check_state("exp_avg_sq", exp_avg_sq, x, layout);
  check_pixels("adam_clip_", "grad", grad);
  EXML_CHECK_VALUE(equal(grad.sizes(), x.sizes()), "adam_clip_: grad must have x's shape ", x.sizes(), ", got ",
                   grad.sizes());
  check_device("adam_clip_", "grad", grad, "x", x);
  check_scalar("step", step, x);
  EXML_CHECK_VALUE(step.scalar_type() == ScalarType::Long || step.scalar_type() == ScalarType::Float,
                   "adam_clip_: step must be int64 or float32, got ", step.scalar_type());
  check_scalar("lr", lr, x);
  EXML_CHECK_VALUE(is_floating_point(lr), "adam_clip_: lr must be floating point, got ", lr.scalar_type());
  EXML_CHECK_VALUE(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1, "adam_clip_: betas must be in [0, 1), got ",
                   beta1, " and ", beta2);
  EXML_CHECK_VALUE(eps >= 0 && std::isfinite(eps), "adam_clip_: eps must be finite and not negative, got ", eps);
  check_overlap(x, exp_avg, exp_avg_sq,
                {{"grad", &grad},
                 {"step", &step},
                 {"lr", &lr},
                 {"low", low ? &*low : nullptr},
                 {"high", high ? &*high : nullptr},
                 {"active", active ? &*active : nullptr}});
  if (active) {
    EXML_CHECK_VALUE(active->scalar_type() == ScalarType::Bool && active->dim() == 1 && active->size(0) == x.size(0),
                     "adam_clip_: active must be bool of shape (N,) = (", x.size(0), ",), got ", active->scalar_type(),
                     " ", active->sizes());
    check_device("adam_clip_", "active", *active, "x", x);
  }
  const bool readable = grad.scalar_type() == x.scalar_type() ||
                        (grad.scalar_type() == ScalarType::BFloat16 && x.scalar_type() == ScalarType::Float);
  const auto [dense_grad, grad_layout] = with_channel_layout(readable ? grad : as_type(grad, x.scalar_type()));
  return {x,
          dense_grad,
          exp_avg,
          exp_avg_sq,
          step,
          as_type(lr, x.scalar_type()),
          checked_bound("low", low, x),
          checked_bound("high", high, x),
          active ? OptionalTensor(as_contiguous(*active)) : std::nullopt,
          layout,
          grad_layout.channels_last != layout.channels_last,
          adam_rates(beta1, beta2, eps)};
}

// The schema has no result, because torch.compile handles an op that returns what it mutates less well. The Python
// wrapper returns x.
EXML_SCHEMAS(m) {
  m.def(
      "_adam_clip_(Tensor(a!) x, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor step, Tensor lr, "
      "float beta1, float beta2, float eps, Tensor? low=None, Tensor? high=None, Tensor? active=None) -> ()");
}

}  // namespace exml
