#include "ops/cuda/bn_match_kernel.h"
#include "ops/cuda/channel_moments.h"

namespace exml::cuda {
namespace {

constexpr int kFinishThreads = 512;

// One block: from the channels' moments to the loss and the pixel gradient's coefficients, in double as on the CPU.
// statistics: scratch for (2, channels).
template <typename A, typename P>
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(Partials<P> partials, int lanes, const A* __restrict__ mean, const A* __restrict__ var,
                  Distance distance, Moment moment, double count, double* statistics, A* __restrict__ loss,
                  A* __restrict__ coefficients) {
  const int64_t channels = partials.channels;
  DistanceSums<double> sums;
  for (int64_t first = 0; first < channels; first += kFinishThreads / lanes) {
    const int64_t c = first + threadIdx.x / lanes;
    const auto moments = channel_moments(partials, c, lanes);
    if (c >= channels || (threadIdx.x & (lanes - 1)) != 0) continue;
    const ChannelStatistics<double> batch{moments.mean, moments.variance()};
    statistics[c] = batch.mean;
    statistics[channels + c] = batch.var;
    const auto term = channel_distance(distance, moment, batch, ChannelStatistics<double>{mean[c], var[c]});
    sums.mean += term.mean;
    sums.moment += term.moment;
  }
  __shared__ double shared[kFinishThreads / 32];
  sums.mean = block_reduce<kFinishThreads / 32>(sums.mean, Sum{}, shared);
  sums.moment = block_reduce<kFinishThreads / 32>(sums.moment, Sum{}, shared);
  if (threadIdx.x == 0) *loss = static_cast<A>(distance_loss(distance, sums));
  for (int64_t c = threadIdx.x; c < channels; c += kFinishThreads) {
    const auto g = pixel_gradient(distance, moment, ChannelStatistics<double>{statistics[c], statistics[channels + c]},
                                  ChannelStatistics<double>{mean[c], var[c]}, sums, count);
    coefficients[c] = static_cast<A>(g.offset);
    coefficients[channels + c] = static_cast<A>(g.slope);
    coefficients[2 * channels + c] = static_cast<A>(g.mean);
  }
}

// Moments only.
struct Nothing {
  static constexpr int kBlocks = 4;
  template <int kWidth, int kStep>
  struct At {
    __device__ At(const Nothing&, int64_t) {}
    template <typename P>
    __device__ void operator()(const P&, int64_t) const {}
  };
};

// out = grad * (offset + slope * (x - mean)).
template <typename T>
struct Gradient {
  using A = Accumulator<T>;
  const A* __restrict__ grad;
  const T* __restrict__ x;
  const A* __restrict__ coefficients;
  T* __restrict__ out;
  int64_t channels;

  template <int kWidth, int kStep>
  struct At {
    const T* x;
    T* out;
    A offset[kWidth], slope[kWidth], mean[kWidth];

    __device__ __forceinline__ At(const Gradient& g, int64_t c) : x(g.x), out(g.out) {
      const A scale = *g.grad;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        offset[j] = scale * g.coefficients[c + j * kStep];
        slope[j] = scale * g.coefficients[g.channels + c + j * kStep];
        mean[j] = g.coefficients[2 * g.channels + c + j * kStep];
      }
    }
    __device__ __forceinline__ void operator()(int64_t i) const {
      const auto loaded = *reinterpret_cast<const Pack<T, kWidth>*>(x + i);
      Pack<T, kWidth> result;
#pragma unroll
      for (int j = 0; j < kWidth; ++j)
        narrow((widen(loaded.value[j]) - mean[j]) * slope[j] + offset[j], result.value[j]);
      *reinterpret_cast<Pack<T, kWidth>*>(out + i) = result;
    }
  };
};

}  // namespace

// The workspace holds the channels' statistics, their combined moments (both in double) and the partial moments.
template <typename T>
int64_t bn_match_workspace(const T* x, const ChannelShape& shape, int multiprocessors) {
  const auto plan = forward_plan<T>(packed(x, shape), shape, multiprocessors);
  return shape.channels * (5 * sizeof(double) + 3 * plan.tile.splits * sizeof(Accumulator<T>));
}

template <typename T>
void bn_match_forward(const T* x, const ChannelShape& shape, const Accumulator<T>* mean, const Accumulator<T>* var,
                      Distance distance, Moment moment, int multiprocessors, void* workspace, Accumulator<T>* loss,
                      Accumulator<T>* coefficients, cudaStream_t stream) {
  using A = Accumulator<T>;
  const auto plan = forward_plan<T>(packed(x, shape), shape, multiprocessors);
  const int64_t channels = shape.channels;
  const int splits = static_cast<int>(plan.tile.splits), lanes = lanes_for(splits);
  auto* statistics = static_cast<double*>(workspace);
  const Partials<double> combined{statistics + 2 * channels, channels, 1};
  const Partials<A> partials{reinterpret_cast<A*>(statistics + 5 * channels), channels, splits};
  if (plan.packed)
    moments<kPackWidth<T>>(x, shape, plan.tile, partials, Nothing{}, stream);
  else
    moments<1>(x, shape, plan.tile, partials, Nothing{}, stream);
  const double count = static_cast<double>(shape.count());
  if (splits > 1 && channels * splits > kManyPartials) {
    launch(combine_kernel<A>, static_cast<unsigned>(divide_up(channels * lanes, kThreads)), kThreads, stream, partials,
           lanes, combined);
    launch(finish_kernel<A, double>, 1, kFinishThreads, stream, combined, 1, mean, var, distance, moment, count,
           statistics, loss, coefficients);
  } else {
    launch(finish_kernel<A, A>, 1, kFinishThreads, stream, partials, lanes, mean, var, distance, moment, count,
           statistics, loss, coefficients);
  }
}

template <typename T>
void bn_match_backward(const Accumulator<T>* grad, const T* x, const ChannelShape& shape,
                       const Accumulator<T>* coefficients, int multiprocessors, T* out, cudaStream_t stream) {
  const int64_t blocks = 8 * int64_t(multiprocessors);
  const Gradient<T> gradient{grad, x, coefficients, out, shape.channels};
  if (packed(x, shape) && packed(out, shape))
    for_each_pack<kPackWidth<T>>(shape, blocks, gradient, stream);
  else
    for_each_pack<1>(shape, blocks, gradient, stream);
}

#define EXML_INSTANTIATE(T)                                                                                         \
  template int64_t bn_match_workspace(const T*, const ChannelShape&, int);                                          \
  template void bn_match_forward(const T*, const ChannelShape&, const Accumulator<T>*, const Accumulator<T>*,       \
                                 Distance, Moment, int, void*, Accumulator<T>*, Accumulator<T>*, cudaStream_t);     \
  template void bn_match_backward(const Accumulator<T>*, const T*, const ChannelShape&, const Accumulator<T>*, int, \
                                  T*, cudaStream_t);
EXML_INSTANTIATE(float)
EXML_INSTANTIATE(double)
EXML_INSTANTIATE(BFloat16)
#undef EXML_INSTANTIATE

}  // namespace exml::cuda
