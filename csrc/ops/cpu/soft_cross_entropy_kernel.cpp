#include <algorithm>
#include <vector>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/cpu/rows.h"
#include "ops/dispatch.h"
#include "ops/soft_cross_entropy.h"

#define EXML_SIMD_SOURCE "ops/cpu/soft_cross_entropy_simd.h"
#include "ops/cpu/for_each_capability.h"

namespace exml {
namespace {

void check_indices(const Tensor& target, int64_t classes) {
  const int64_t* indices = target.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < target.size(0); ++n)
    EXML_CHECK_INDEX(indices[n] >= 0 && indices[n] < classes, "soft_cross_entropy: target must be in [0, ", classes,
                     "), got ", indices[n], " at row ", n);
}

std::tuple<Tensor, Tensor> forward(const SoftCrossEntropy& arguments) {
  const auto& [logits, target, temperature, reduction] = arguments;
  const int64_t rows = logits.size(0), classes = logits.size(1);
  const bool soft = is_floating_point(target);
  if (!soft) check_indices(target, classes);
  Tensor lse = empty({rows}, accumulator_dtype(logits), logits), losses = new_like(lse), loss;
  dispatch_pixels(logits, [&](auto* z) {
    using A = Accumulator<PixelOf<decltype(z)>>;
    const A scale = static_cast<A>(1 / temperature);
    A *row_losses = losses.mutable_data_ptr<A>(), *row_lses = lse.mutable_data_ptr<A>();
    parallel_for(0, rows, row_grain(classes), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const auto* row = z + n * classes;
        const A top = EXML_CPU_CALL(row_top, row, classes);
        row_lses[n] = EXML_CPU_CALL(row_lse, row, classes, top, scale);
        if (soft) {
          row_losses[n] =
              EXML_CPU_CALL(row_loss, row, target.const_data_ptr<A>() + n * classes, classes, top, scale, row_lses[n]);
        } else {
          const int64_t k = target.const_data_ptr<int64_t>()[n];
          row_losses[n] = row_lses[n] - (widen(row[k]) - top) * scale;
        }
      }
    });
    loss = reduced_rows<A>(losses, reduction);
  });
  return {loss, lse};
}

Tensor backward(const SoftCrossEntropyBackward& arguments) {
  const auto& [grad, logits, target, lse, temperature, reduction] = arguments;
  const int64_t rows = logits.size(0), classes = logits.size(1);
  const bool soft = is_floating_point(target);
  if (!soft) check_indices(target, classes);
  Tensor out = new_like(logits);
  dispatch_pixels(logits, [&](auto* z) {
    using T = PixelOf<decltype(z)>;
    using A = Accumulator<T>;
    const A scale = static_cast<A>(1 / temperature);
    const A share = static_cast<A>(row_share(reduction, rows) / temperature);
    const A *pulls = grad.const_data_ptr<A>(), *row_lses = lse.const_data_ptr<A>();
    T* result = static_cast<T*>(out.mutable_data_ptr());
    parallel_for(0, rows, row_grain(classes), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T* row = z + n * classes;
        const A pull = share * pulls[reduction == Reduction::none ? n : 0];
        const A top = EXML_CPU_CALL(row_top, row, classes);
        const A* row_target = soft ? target.const_data_ptr<A>() + n * classes : nullptr;
        EXML_CPU_CALL(row_gradient, row, row_target, classes, top, scale, row_lses[n], pull, result + n * classes);
        if (!soft) {
          const int64_t k = target.const_data_ptr<int64_t>()[n];
          narrow(pull * (std::exp((widen(row[k]) - top) * scale - row_lses[n]) - A(1)), result[n * classes + k]);
        }
      }
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CPU, m) {
  m.impl("_soft_cross_entropy_forward", checked<&soft_cross_entropy_arguments, &forward>);
  m.impl("_soft_cross_entropy_backward", checked<&soft_cross_entropy_backward_arguments, &backward>);
}

}  // namespace
}  // namespace exml
