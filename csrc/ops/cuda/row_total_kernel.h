// Launcher of the sum over rows of losses. A: float or double.
#pragma once

#include "ops/cuda/launch.h"

namespace exml::cuda {

// total = factor * sum of the losses, in a fixed order.
template <typename A>
void row_total(const A* losses, int64_t rows, double factor, A* total, cudaStream_t stream);

}  // namespace exml::cuda
