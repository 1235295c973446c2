// What the binders of the losses over rows of logits share.
#pragma once

#include "ops/cuda/context.h"
#include "ops/cuda/row_total_kernel.h"
#include "ops/reduction.h"

namespace exml::cuda {

// losses: (N,), of type A.
template <typename A>
Tensor reduced_rows(const Context& context, const Tensor& losses, Reduction reduction) {
  if (reduction == Reduction::none) return losses;
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const int64_t rows = losses.size(0);
  const Tensor total = context.empty({}, losses.scalar_type());
  row_total(losses.const_data_ptr<A>(), rows, row_share(reduction, rows), total.mutable_data_ptr<A>(),
            context.stream());
  return total;
}

}  // namespace exml::cuda
