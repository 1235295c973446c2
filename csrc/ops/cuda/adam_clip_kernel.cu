#include "ops/cuda/adam_clip_kernel.h"
#include "ops/cuda/pack.h"

namespace exml::cuda {
namespace {

constexpr int kThreads = 256;
// Packs that a thread handles where there are enough of them.
constexpr int kPacks = 4;

// Blocks (u, s) share the values of unit u: a plane of contiguous images, or a whole image in channels_last.
template <typename T, typename G, int kWidth>
__global__ void __launch_bounds__(kThreads, 2) adam_clip_kernel(const __grid_constant__ AdamClipArguments<T, G> a) {
  const unsigned channels = static_cast<unsigned>(a.channels), plane = static_cast<unsigned>(a.plane);
  const unsigned size = a.channels_last ? channels * plane : plane;
  const int64_t n = a.channels_last ? blockIdx.x : blockIdx.x / channels;
  const unsigned channel = a.channels_last ? 0 : blockIdx.x % channels;
  if (a.active && !a.active[n]) return;
  __shared__ AdamStep<T> shared;
  if (threadIdx.x == 0) shared = adam_step<T>(a.rates, a.step ? T(*a.step) : T(*a.real_step), *a.lr);
  __syncthreads();
  const AdamStep<T> step = shared;
  const int64_t begin = blockIdx.x * int64_t(size);
  const G* image_grad = a.grad + n * channels * plane;
  for (unsigned i = (blockIdx.y * kThreads + threadIdx.x) * kWidth; i < size; i += gridDim.y * kThreads * kWidth) {
    auto* xs = reinterpret_cast<Pack<T, kWidth>*>(a.x + begin + i);
    auto* ms = reinterpret_cast<Pack<T, kWidth>*>(a.exp_avg + begin + i);
    auto* vs = reinterpret_cast<Pack<T, kWidth>*>(a.exp_avg_sq + begin + i);
    Pack<T, kWidth> x = *xs, m = *ms, v = *vs;
    Pack<G, kWidth> grad;
    // The pixel and the channel of the pack's first value.
    unsigned p = a.channels_last ? i / channels : i, c = a.channels_last ? i - p * channels : channel;
    if (!a.grad_transposed) grad = *reinterpret_cast<const Pack<G, kWidth>*>(a.grad + begin + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (a.grad_transposed) grad.value[j] = image_grad[a.channels_last ? c * plane + p : p * channels + c];
      const T low = a.low ? a.low[c] : -INFINITY, high = a.high ? a.high[c] : INFINITY;
      x.value[j] = adam_clip<T>(step, x.value[j], widen(grad.value[j]), m.value[j], v.value[j], low, high);
      if (!a.channels_last) {
        ++p;
      } else if (++c == channels) {
        c = 0;
        ++p;
      }
    }
    *xs = x;
    *ms = m;
    *vs = v;
  }
}

}  // namespace

template <typename T, typename G>
void adam_clip(const AdamClipArguments<T, G>& a, cudaStream_t stream) {
  const int64_t unit = a.channels_last ? a.channels * a.plane : a.plane;
  const int64_t units = a.batch * a.channels * a.plane / unit;
  constexpr int kWidth = kPackWidth<T>;
  const bool packed = packs(a.x, unit) && packs(a.exp_avg, unit) && packs(a.exp_avg_sq, unit) &&
                      (a.grad_transposed || reinterpret_cast<uintptr_t>(a.grad) % (sizeof(G) * kWidth) == 0);
  const int64_t splits = divide_up(unit, kThreads * kPacks * (packed ? kWidth : 1));
  const dim3 grid(static_cast<unsigned>(units), static_cast<unsigned>(splits < 65535 ? splits : 65535));
  if (packed)
    launch(adam_clip_kernel<T, G, kWidth>, grid, kThreads, stream, a);
  else
    launch(adam_clip_kernel<T, G, 1>, grid, kThreads, stream, a);
}

template void adam_clip(const AdamClipArguments<float, float>&, cudaStream_t);
template void adam_clip(const AdamClipArguments<float, BFloat16>&, cudaStream_t);
template void adam_clip(const AdamClipArguments<double, double>&, cudaStream_t);

}  // namespace exml::cuda
