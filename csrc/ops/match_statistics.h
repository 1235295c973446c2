// Weighted sum over layers of the distance between given channel statistics and their targets (Yin 2020, Eq. 4).
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

#include "math/statistics_distance.h"

namespace exml {

// One layer: contiguous (C,) tensors in the same dtype, float32 or float64.
struct MatchedLayer {
  at::Tensor mean, var, target_mean, target_var;
  double weight;

  int64_t channels() const { return mean.size(0); }
};

// Loss (scalar) in the statistics' dtype and each layer's DistanceSums (L, 2) in float64.
std::tuple<at::Tensor, at::Tensor> match_statistics_forward_cpu(const std::vector<MatchedLayer>& layers,
                                                                Distance distance, Moment moment);
std::tuple<at::Tensor, at::Tensor> match_statistics_forward_cuda(const std::vector<MatchedLayer>& layers,
                                                                 Distance distance, Moment moment);

// Gradients of all means, then of all variances, layer after layer: (2, sum of C).
at::Tensor match_statistics_backward_cpu(const at::Tensor& grad, const std::vector<MatchedLayer>& layers,
                                         const at::Tensor& sums, Distance distance, Moment moment);
at::Tensor match_statistics_backward_cuda(const at::Tensor& grad, const std::vector<MatchedLayer>& layers,
                                          const at::Tensor& sums, Distance distance, Moment moment);

}  // namespace exml
