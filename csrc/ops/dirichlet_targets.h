// A batch of Dirichlet draws from class similarities (Nayak 2021, Alg. 1).
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <optional>

namespace exml {

// Row n is a draw from Dirichlet(betas[n] * similarity[classes[n]]). similarity (K, K) float32 or float64, contiguous;
// classes (N,) int64; betas (N,) in similarity's dtype. Returns (N, K) in similarity's dtype. A row whose class is out
// of range or whose concentration is not positive and finite is NaN.
at::Tensor dirichlet_targets_cpu(const at::Tensor& similarity, const at::Tensor& classes, const at::Tensor& betas,
                                 const std::optional<at::Generator>& generator);
at::Tensor dirichlet_targets_cuda(const at::Tensor& similarity, const at::Tensor& classes, const at::Tensor& betas,
                                  const std::optional<at::Generator>& generator);

// True while the current stream records a CUDA graph, when values on the device cannot be looked at.
bool is_capturing_cuda();

}  // namespace exml
