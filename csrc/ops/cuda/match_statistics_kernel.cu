#include "ops/cuda/match_statistics_kernel.h"
#include "ops/cuda/reduce.h"

namespace exml::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32, kGradientThreads = 128;
// Channels that a warp takes at a time, a few loads in flight for each lane.
constexpr int kBatch = 4, kChunk = 32 * kBatch;

// Layers of one launch, passed by value: as many as 4 KB of kernel parameters hold beside the other arguments.
constexpr int kStatisticsLayers = 80;
template <typename A>
struct Layers {
  StatisticsLayer<A> layer[kStatisticsLayers];
  int count;
};

template <typename A>
__device__ __forceinline__ DistanceSums<double> layer_term(const StatisticsLayer<A>& layer, int c, Distance distance,
                                                           Moment moment) {
  return channel_distance(distance, moment, ChannelStatistics<double>{layer.mean[c], layer.var[c]},
                          ChannelStatistics<double>{layer.target_mean[c], layer.target_var[c]});
}

// One block: chunks of channels are dealt to the warps in turn, layer after layer. `first`: nothing is in *loss yet.
template <typename A>
__global__ void __launch_bounds__(kThreads, 1)
    distances_kernel(const __grid_constant__ Layers<A> layers, Distance distance, Moment moment, bool first,
                     double* __restrict__ sums, A* __restrict__ loss) {
  __shared__ double means[kStatisticsLayers][kWarps], moments[kStatisticsLayers][kWarps], shared[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int chunk = warp;
  for (int l = 0; l < layers.count; ++l) {
    const StatisticsLayer<A>& layer = layers.layer[l];
    const int chunks = (layer.channels + kChunk - 1) / kChunk;
    DistanceSums<double> sum;
    if (chunk < chunks) {
      for (; chunk < chunks; chunk += kWarps)
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          const int c = chunk * kChunk + b * 32 + lane;
          if (c >= layer.channels) continue;
          const auto term = layer_term(layer, c, distance, moment);
          sum.mean += term.mean;
          sum.moment += term.moment;
        }
      sum.mean = warp_reduce(sum.mean, Sum{});
      sum.moment = warp_reduce(sum.moment, Sum{});
    }
    chunk -= chunks;
    if (lane == 0) {
      means[l][warp] = sum.mean;
      moments[l][warp] = sum.moment;
    }
  }
  __syncthreads();
  double value = 0;
  if (const int l = threadIdx.x; l < layers.count) {
    DistanceSums<double> sum;
    for (int w = 0; w < kWarps; ++w) {
      sum.mean += means[l][w];
      sum.moment += moments[l][w];
    }
    sums[2 * l] = sum.mean;
    sums[2 * l + 1] = sum.moment;
    value = layers.layer[l].weight * distance_loss(distance, sum);
  }
  value = block_reduce<kWarps>(value, Sum{}, shared);
  if (threadIdx.x == 0) *loss = static_cast<A>(first ? value : double(*loss) + value);
}

// Blocks (x, l) share the channels of layer l.
template <typename A>
__global__ void __launch_bounds__(kGradientThreads)
    statistics_gradient_kernel(const A* __restrict__ grad, const __grid_constant__ Layers<A> layers, Distance distance,
                               Moment moment, const double* __restrict__ sums, int64_t channels, A* __restrict__ out) {
  const int l = blockIdx.y, c = blockIdx.x * kGradientThreads + threadIdx.x;
  const StatisticsLayer<A>& layer = layers.layer[l];
  if (c >= layer.channels) return;
  const double pull = layer.weight * double(*grad);
  const auto d = statistics_gradient(distance, moment, ChannelStatistics<double>{layer.mean[c], layer.var[c]},
                                     ChannelStatistics<double>{layer.target_mean[c], layer.target_var[c]},
                                     DistanceSums<double>{sums[2 * l], sums[2 * l + 1]});
  out[layer.offset + c] = static_cast<A>(pull * d.mean);
  out[channels + layer.offset + c] = static_cast<A>(pull * d.var);
}

// Calls f(first layer, layers of this launch) until all have been passed on.
template <typename A, typename F>
void in_launches(const StatisticsLayer<A>* layers, int64_t count, F f) {
  for (int64_t first = 0; first < count; first += kStatisticsLayers) {
    Layers<A> part;
    part.count = static_cast<int>(count - first < kStatisticsLayers ? count - first : kStatisticsLayers);
    for (int l = 0; l < part.count; ++l) part.layer[l] = layers[first + l];
    f(first, part);
  }
}

}  // namespace

template <typename A>
void match_statistics_forward(const StatisticsLayer<A>* layers, int64_t count, Distance distance, Moment moment,
                              double* sums, A* loss, cudaStream_t stream) {
  in_launches(layers, count, [&](int64_t first, const Layers<A>& part) {
    launch(distances_kernel<A>, 1, kThreads, stream, part, distance, moment, first == 0, sums + 2 * first, loss);
  });
}

template <typename A>
void match_statistics_backward(const A* grad, const StatisticsLayer<A>* layers, int64_t count, Distance distance,
                               Moment moment, const double* sums, int64_t channels, A* out, cudaStream_t stream) {
  in_launches(layers, count, [&](int64_t first, const Layers<A>& part) {
    int widest = 0;
    for (int l = 0; l < part.count; ++l) widest = widest < part.layer[l].channels ? part.layer[l].channels : widest;
    const dim3 grid(static_cast<unsigned>(divide_up(widest, kGradientThreads)), static_cast<unsigned>(part.count));
    launch(statistics_gradient_kernel<A>, grid, kGradientThreads, stream, grad, part, distance, moment,
           sums + 2 * first, channels, out);
  });
}

#define EXML_INSTANTIATE(A)                                                                                 \
  template void match_statistics_forward(const StatisticsLayer<A>*, int64_t, Distance, Moment, double*, A*, \
                                         cudaStream_t);                                                     \
  template void match_statistics_backward(const A*, const StatisticsLayer<A>*, int64_t, Distance, Moment,   \
                                          const double*, int64_t, A*, cudaStream_t);
EXML_INSTANTIATE(float)
EXML_INSTANTIATE(double)
#undef EXML_INSTANTIATE

}  // namespace exml::cuda
