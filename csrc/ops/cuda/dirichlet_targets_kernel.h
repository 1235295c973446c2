// Launcher of the dirichlet_targets kernels. A: float or double.
#pragma once

#include "ops/cuda/launch.h"

namespace exml::cuda {

// Seed and counter of the random streams: by value, or on the device while a CUDA graph is recorded, so that every
// replay draws anew. Where the pointers are set, `offset` comes on top of *device_offset. Both offsets count 32-bit
// words, as torch's generator does.
struct RandomState {
  uint64_t seed, offset;
  const int64_t *device_seed, *device_offset;
};

// The number by which a launch advances the offset of the generator.
uint64_t dirichlet_targets_words();

// similarity (classes, classes); labels, betas (rows,). scratch: (rows, classes). A row whose label is out of range or
// whose concentration is not positive and finite is NaN.
template <typename A>
void dirichlet_targets(const A* similarity, const int64_t* labels, const A* betas, int64_t rows, int64_t classes,
                       const RandomState& random, double* scratch, A* out, cudaStream_t stream);

}  // namespace exml::cuda
