#include "ops/cuda/channel_moments.h"
#include "ops/cuda/frozen_bn_act_kernel.h"

namespace exml::cuda {
namespace {

// z = scale x + shift (+ residual) for the lanes of a pack.
template <typename T, int kWidth, int kStep>
struct Normalised {
  using A = Accumulator<T>;
  const T* residual;
  A scale[kWidth], shift[kWidth];

  __device__ __forceinline__ Normalised(const FrozenNorm<T>& norm, int64_t c) : residual(norm.residual) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      scale[j] = norm.scale[c + j * kStep];
      shift[j] = norm.shift[c + j * kStep];
    }
  }
  __device__ __forceinline__ void operator()(const Pack<T, kWidth>& x, int64_t i, A* z) const {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) z[j] = widen(x.value[j]) * scale[j] + shift[j];
    if (residual == nullptr) return;
    const auto added = *reinterpret_cast<const Pack<T, kWidth>*>(residual + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) z[j] += widen(added.value[j]);
  }
};

template <typename T, int kWidth>
__device__ __forceinline__ void put(const Accumulator<T>* values, T* out) {
  Pack<T, kWidth> result;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) narrow(values[j], result.value[j]);
  *reinterpret_cast<Pack<T, kWidth>*>(out) = result;
}

// y = act(z) and the mask, beside the moments of x.
template <typename T>
struct Forward {
  static constexpr int kBlocks = 2;
  FrozenNorm<T> norm;
  T* y;
  uint8_t* mask;

  template <int kWidth, int kStep>
  struct At {
    const Forward& forward;
    Normalised<T, kWidth, kStep> normalised;

    __device__ __forceinline__ At(const Forward& forward, int64_t c) : forward(forward), normalised(forward.norm, c) {}
    __device__ __forceinline__ void operator()(const Pack<T, kWidth>& x, int64_t i) const {
      Accumulator<T> z[kWidth];
      normalised(x, i, z);
      if (forward.mask) {
        Pack<uint8_t, kWidth> passes;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) passes.value[j] = !(z[j] <= 0);
        *reinterpret_cast<Pack<uint8_t, kWidth>*>(forward.mask + i) = passes;
      }
      activate<kWidth>(forward.norm.activation, z, forward.norm.negative_slope);
      put<T, kWidth>(z, forward.y + i);
    }
  };
};

// grad_x = scale d + grad_mean / count + 2 grad_var / count (x - mean) and grad_residual = d = act'(z) grad_y.
template <typename T>
struct Backward {
  FrozenNorm<T> norm;
  FrozenNormGrads<T> grads;
  const T* x;
  Accumulator<T> share;  // 1 / values of a channel
  T *grad_x, *grad_residual;

  template <int kWidth, int kStep>
  struct At {
    using A = Accumulator<T>;
    const Backward& backward;
    Normalised<T, kWidth, kStep> normalised;
    A offset[kWidth], slope[kWidth], mean[kWidth];

    __device__ __forceinline__ At(const Backward& b, int64_t c) : backward(b), normalised(b.norm, c) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const int64_t channel = c + j * kStep;
        offset[j] = b.grads.mean ? b.grads.mean[channel] * b.share : A(0);
        slope[j] = b.grads.var ? A(2) * b.grads.var[channel] * b.share : A(0);
        mean[j] = b.grads.batch_mean[channel];
      }
    }
    __device__ __forceinline__ void operator()(int64_t i) const {
      const auto x = *reinterpret_cast<const Pack<T, kWidth>*>(backward.x + i);
      A d[kWidth] = {}, result[kWidth];
      if (backward.grads.y) {
        const auto g = *reinterpret_cast<const Pack<T, kWidth>*>(backward.grads.y + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) d[j] = widen(g.value[j]);
        if (backward.grads.mask) {
          const auto passes = *reinterpret_cast<const Pack<uint8_t, kWidth>*>(backward.grads.mask + i);
#pragma unroll
          for (int j = 0; j < kWidth; ++j) d[j] = passes.value[j] ? d[j] : A(0);
        } else {
          A z[kWidth];
          normalised(x, i, z);
          pull_back<kWidth>(backward.norm.activation, z, d, backward.norm.negative_slope);
        }
      }
      if (backward.grad_residual) put<T, kWidth>(d, backward.grad_residual + i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j)
        result[j] = d[j] * normalised.scale[j] + ((widen(x.value[j]) - mean[j]) * slope[j] + offset[j]);
      put<T, kWidth>(result, backward.grad_x + i);
    }
  };
};

template <typename A>
__global__ void __launch_bounds__(kThreads)
    statistics_kernel(Partials<A> partials, int lanes, A* __restrict__ mean, A* __restrict__ var) {
  const int64_t c = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / lanes;
  const auto moments = channel_moments(partials, c, lanes);
  if (c >= partials.channels || (threadIdx.x & (lanes - 1)) != 0) return;
  mean[c] = static_cast<A>(moments.mean);
  var[c] = static_cast<A>(moments.variance());
}

// Whether all given arrays split into packs.
template <typename T, typename... Pointers>
bool all_packed(const ChannelShape& shape, Pointers... arrays) {
  return (... && (arrays == nullptr || packed<T>(arrays, shape)));
}

}  // namespace

template <typename T>
int64_t frozen_bn_act_workspace(const T* x, const FrozenNorm<T>& norm, const ChannelShape& shape, const T* y,
                                int multiprocessors) {
  const auto plan = forward_plan<T>(all_packed<T>(shape, x, norm.residual, y), shape, multiprocessors);
  return shape.channels * 3 * plan.tile.splits * sizeof(Accumulator<T>);
}

template <typename T>
void frozen_bn_act_forward(const T* x, const FrozenNorm<T>& norm, const ChannelShape& shape, int multiprocessors,
                           void* workspace, T* y, Accumulator<T>* mean, Accumulator<T>* var, uint8_t* mask,
                           cudaStream_t stream) {
  using A = Accumulator<T>;
  const auto plan = forward_plan<T>(all_packed<T>(shape, x, norm.residual, y), shape, multiprocessors);
  const int splits = static_cast<int>(plan.tile.splits), lanes = lanes_for(splits);
  const Partials<A> partials{static_cast<A*>(workspace), shape.channels, splits};
  const Forward<T> visit{norm, y, mask};
  if (plan.packed)
    moments<kPackWidth<T>>(x, shape, plan.tile, partials, visit, stream);
  else
    moments<1>(x, shape, plan.tile, partials, visit, stream);
  launch(statistics_kernel<A>, static_cast<unsigned>(divide_up(shape.channels * lanes, kThreads)), kThreads, stream,
         partials, lanes, mean, var);
}

template <typename T>
void frozen_bn_act_backward(const FrozenNormGrads<T>& grads, const T* x, const FrozenNorm<T>& norm,
                            const ChannelShape& shape, int multiprocessors, T* grad_x, T* grad_residual,
                            cudaStream_t stream) {
  const int64_t blocks = 8 * int64_t(multiprocessors);
  const Backward<T> visit{norm,   grads,        x, Accumulator<T>(1) / static_cast<Accumulator<T>>(shape.count()),
                          grad_x, grad_residual};
  // Divisions of doubles are calls, around which two doubles a thread would spill.
  constexpr int kWidth = sizeof(T) == 8 ? 1 : kPackWidth<T>;
  const bool mask_packed = reinterpret_cast<uintptr_t>(grads.mask) % kWidth == 0;
  if (mask_packed && all_packed<T>(shape, x, norm.residual, grads.y, grad_x, grad_residual))
    for_each_pack<kWidth>(shape, blocks, visit, stream);
  else
    for_each_pack<1>(shape, blocks, visit, stream);
}

#define EXML_INSTANTIATE(T)                                                                                            \
  template int64_t frozen_bn_act_workspace(const T*, const FrozenNorm<T>&, const ChannelShape&, const T*, int);        \
  template void frozen_bn_act_forward(const T*, const FrozenNorm<T>&, const ChannelShape&, int, void*, T*,             \
                                      Accumulator<T>*, Accumulator<T>*, uint8_t*, cudaStream_t);                       \
  template void frozen_bn_act_backward(const FrozenNormGrads<T>&, const T*, const FrozenNorm<T>&, const ChannelShape&, \
                                       int, T*, T*, cudaStream_t);
EXML_INSTANTIATE(float)
EXML_INSTANTIATE(double)
EXML_INSTANTIATE(BFloat16)
#undef EXML_INSTANTIATE

}  // namespace exml::cuda
