// Helpers of the CPU kernels of losses over rows of logits.
#pragma once

#include <algorithm>

#include "ops/reduction.h"

namespace exml {

// Rows that one task of a parallel loop handles.
inline int64_t row_grain(int64_t classes) { return std::max<int64_t>(1, 8192 / classes); }

// losses: (N,), of type A.
template <typename A>
Tensor reduced_rows(const Tensor& losses, Reduction reduction) {
  if (reduction == Reduction::none) return losses;
  const int64_t rows = losses.size(0);
  const A* values = losses.const_data_ptr<A>();
  double total = 0;
  for (int64_t n = 0; n < rows; ++n) total += values[n];
  Tensor result = empty({}, losses.scalar_type(), losses);
  *result.mutable_data_ptr<A>() = static_cast<A>(total * row_share(reduction, rows));
  return result;
}

}  // namespace exml
