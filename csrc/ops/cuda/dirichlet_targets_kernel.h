// Launcher of dirichlet_targets' CUDA kernels. A: float or double.
#pragma once

#include "ops/cuda/launch.h"

namespace exml::cuda {

// Seed and offset of the draws: values, or, inside a CUDA graph, addresses whose contents change with every replay.
struct PhiloxState {
  const int64_t *seed_address, *offset_address;  // null outside a graph
  uint64_t seed, offset;                         // inside a graph, `offset` is added to what the address holds
};

// logs: rows * classes values of workspace.
template <typename A>
void dirichlet_targets(const A* similarity, const int64_t* labels, const A* betas, int64_t rows, int64_t classes,
                       PhiloxState state, double* logs, A* out, cudaStream_t stream);

}  // namespace exml::cuda
