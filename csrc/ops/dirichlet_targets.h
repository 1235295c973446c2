// A batch of Dirichlet draws from class similarities (Nayak 2021, Alg. 1).
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <optional>

namespace exml {

// The arguments of a kernel: similarity (K, K) float32 or float64, contiguous; classes (N,) int64, contiguous; betas
// (N,) in similarity's dtype, contiguous. It returns (N, K) in similarity's dtype: row n is a draw from
// Dirichlet(betas[n] * similarity[classes[n]]). A row whose class is out of range or whose concentration is not
// positive and finite is NaN.
struct DirichletTargets {
  at::Tensor similarity, classes, betas;
  std::optional<at::Generator> generator;
};

// Checks shapes, dtypes and devices of the arguments of exml::dirichlet_targets and lays them out for a kernel.
DirichletTargets dirichlet_targets_arguments(const at::Tensor& similarity, const at::Tensor& classes,
                                             const at::Tensor& betas, const std::optional<at::Generator>& generator);

// Checks the values too. This waits for the device, so that a kernel must not call it while a CUDA graph is recorded.
void check_dirichlet_values(const DirichletTargets& arguments);

}  // namespace exml
