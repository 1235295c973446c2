// Launchers of the match_statistics kernels. A: float or double.
#pragma once

#include "math/statistics_distance.h"
#include "ops/cuda/launch.h"

namespace exml::cuda {

template <typename A>
struct StatisticsLayer {
  const A *mean, *var, *target_mean, *target_var;
  double weight;
  int channels;
  int offset;  // channels of the layers before
};

// Writes the loss (one value) and each layer's DistanceSums (count, 2). One launch for up to 80 layers.
template <typename A>
void match_statistics_forward(const StatisticsLayer<A>* layers, int64_t count, Distance distance, Moment moment,
                              double* sums, A* loss, cudaStream_t stream);

// grad: one value on the device. out: gradients of the means, then of the variances, (2, channels), by offset.
template <typename A>
void match_statistics_backward(const A* grad, const StatisticsLayer<A>* layers, int64_t count, Distance distance,
                               Moment moment, const double* sums, int64_t channels, A* out, cudaStream_t stream);

}  // namespace exml::cuda
