// A batch of Dirichlet draws from class similarities (Nayak 2021, Alg. 1).
#pragma once

#include "ops/tensor.h"

namespace exml {

// The arguments of a kernel: similarity (K, K) float32 or float64, contiguous; classes (N,) int64, contiguous; betas
// (N,) in similarity's dtype, contiguous; seed () int64. It returns (N, K) in similarity's dtype: row n is a draw from
// Dirichlet(betas[n] * similarity[classes[n]]). A row whose class is out of range or whose concentration is not
// positive and finite is NaN.
struct DirichletTargets {
  Tensor similarity, classes, betas, seed;
};

// Checks shapes, dtypes and devices of the arguments of exml::_dirichlet_targets and lays them out for a kernel.
DirichletTargets dirichlet_targets_arguments(const Tensor& similarity, const Tensor& classes, const Tensor& betas,
                                             const Tensor& seed);

}  // namespace exml
