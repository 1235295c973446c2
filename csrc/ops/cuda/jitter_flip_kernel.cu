#include "ops/cuda/jitter_flip_kernel.h"
#include "ops/cuda/pack.h"

namespace exml::cuda {
namespace {

constexpr int kThreads = 256;
// Packs that a thread handles where there are enough of them.
constexpr int kPacks = 2;

// Blocks (u, s) share the values of unit u of the result: a plane of contiguous images, or a channels_last image.
template <typename T, typename U, int kWidth>
__global__ void __launch_bounds__(kThreads) jitter_flip_kernel(const __grid_constant__ JitterFlipArguments<T, U> a) {
  const unsigned channels = static_cast<unsigned>(a.channels), width = static_cast<unsigned>(a.width);
  const unsigned size = static_cast<unsigned>(a.height * a.width) * (a.channels_last ? channels : 1);
  const int64_t n = a.channels_last ? blockIdx.x : blockIdx.x / channels;
  const unsigned channel = a.channels_last ? 0 : blockIdx.x % channels;
  const int64_t* down_right = a.shift + n * a.shift_step;
  const ShiftedLine lines(a.height, down_right[0], false, a.wrap, a.adjoint);
  const ShiftedLine columns(a.width, down_right[1], a.flip[n * a.flip_step], a.wrap, a.adjoint);
  const T* image = a.x + n * a.strides[0];
  U* out = a.out + blockIdx.x * int64_t(size);
  for (unsigned e = (blockIdx.y * kThreads + threadIdx.x) * kWidth; e < size; e += gridDim.y * kThreads * kWidth) {
    // Place of the pack's first value.
    const unsigned pixel = a.channels_last ? e / channels : e;
    unsigned c = a.channels_last ? e - pixel * channels : channel, i = pixel / width, j = pixel - i * width;
    int64_t row = lines.source(i);
    Pack<U, kWidth> result;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const int64_t column = columns.source(j);
      const bool inside = row >= 0 && column >= 0;
      const T* source = image + c * a.strides[1] + row * a.strides[2] + column * a.strides[3];
      narrow(inside ? Accumulator<U>(widen(*source)) : Accumulator<U>(0), result.value[k]);
      if (!a.channels_last || ++c == channels) {
        if (a.channels_last) c = 0;
        if (++j == width) {
          j = 0;
          row = lines.source(++i);
        }
      }
    }
    *reinterpret_cast<Pack<U, kWidth>*>(out + e) = result;
  }
}

}  // namespace

template <typename T, typename U>
void jitter_flip(const JitterFlipArguments<T, U>& a, cudaStream_t stream) {
  const int64_t unit = a.height * a.width * (a.channels_last ? a.channels : 1);
  const int64_t units = a.channels_last ? a.batch : a.batch * a.channels;
  constexpr int kWidth = 4;
  const bool packed = unit % kWidth == 0 && reinterpret_cast<uintptr_t>(a.out) % sizeof(Pack<U, kWidth>) == 0;
  const int64_t splits = divide_up(unit, kThreads * kPacks * (packed ? kWidth : 1));
  const dim3 grid(static_cast<unsigned>(units), static_cast<unsigned>(splits < 65535 ? splits : 65535));
  if (packed)
    launch(jitter_flip_kernel<T, U, kWidth>, grid, kThreads, stream, a);
  else
    launch(jitter_flip_kernel<T, U, 1>, grid, kThreads, stream, a);
}

#define EXML_INSTANTIATE(T)                                                       \
  template void jitter_flip(const JitterFlipArguments<T, float>&, cudaStream_t);  \
  template void jitter_flip(const JitterFlipArguments<T, double>&, cudaStream_t); \
  template void jitter_flip(const JitterFlipArguments<T, BFloat16>&, cudaStream_t);
EXML_INSTANTIATE(float)
EXML_INSTANTIATE(double)
EXML_INSTANTIATE(BFloat16)
#undef EXML_INSTANTIATE

}  // namespace exml::cuda
