// Weighted sum over layers of the distance between given channel statistics and their targets (Yin 2020, Eq. 4).
#pragma once

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "math/statistics_distance.h"
#include "ops/tensor.h"

namespace exml {

// One layer: contiguous (C,) tensors in the same dtype, float32 or float64.
struct MatchedLayer {
  Tensor mean, var, target_mean, target_var;
  double weight;

  int64_t channels() const { return mean.size(0); }
};

// The arguments of a forward kernel. It returns the loss (scalar) in the statistics' dtype and each layer's
// DistanceSums (L, 2) in float64.
struct MatchStatistics {
  std::vector<MatchedLayer> layers;
  Distance distance;
  Moment moment;
};

// The arguments of a backward kernel: the pull on the loss (scalar) and the sums of the forward pass. It returns the
// gradients of all means, then of all variances, layer after layer: (2, sum of C).
struct MatchStatisticsBackward {
  Tensor grad;
  MatchStatistics op;
  Tensor sums;
};

using TensorList = torch::headeronly::HeaderOnlyArrayRef<Tensor>;
using LayerWeights = std::optional<torch::headeronly::HeaderOnlyArrayRef<double>>;

// Checks the arguments of exml::_match_statistics_forward and _backward and lays them out for a kernel.
MatchStatistics match_statistics_arguments(TensorList means, TensorList variances, TensorList target_means,
                                           TensorList target_variances, LayerWeights weights, std::string_view distance,
                                           std::string_view moment);
MatchStatisticsBackward match_statistics_backward_arguments(const Tensor& grad, TensorList means, TensorList variances,
                                                            TensorList target_means, TensorList target_variances,
                                                            const Tensor& sums, LayerWeights weights,
                                                            std::string_view distance, std::string_view moment);

}  // namespace exml
