#include "ops/cuda/bn_match_kernel.h"
#include "ops/cuda/reduce.h"

namespace exml::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 32, kRows = kThreads / kColumns;  // a channels_last block
constexpr int kRun = 64;                                   // values that share a shift, see math/moments.h

// A thread's values, in runs: shifted sums in the accumulator's type, runs combined by Chan's rule.
template <typename A>
class RunningMoments {
 public:
  __device__ void add(A x) {
    if (length_ == 0) shift_ = x;
    const A d = x - shift_;
    sum_ += d;
    square_ += d * d;
    if (++length_ == kRun) flush();
  }

  __device__ Moments<A> total() {
    if (length_ > 0) flush();
    return total_;
  }

 private:
  __device__ void flush() {
    total_ = combine(total_, from_shifted_sums<A>(A(length_), shift_, sum_, square_));
    sum_ = square_ = A(0);
    length_ = 0;
  }

  Moments<A> total_;
  A shift_ = 0, sum_ = 0, square_ = 0;
  int length_ = 0;
};

template <typename A>
struct Combine {
  __device__ Moments<A> operator()(const Moments<A>& a, const Moments<A>& b) const { return combine(a, b); }
};

// Block (channel, split): a stretch of the channel's batch * plane values.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    plane_moments_kernel(const T* __restrict__ x, int64_t batch, int64_t channels, int64_t plane, int64_t chunk,
                         Moments<A>* __restrict__ partial) {
  const int64_t channel = blockIdx.x, count = batch * plane;
  const int64_t begin = blockIdx.y * chunk, end = begin + chunk < count ? begin + chunk : count;
  RunningMoments<A> running;
  int64_t i = begin + threadIdx.x, n = i / plane, p = i % plane;
  for (; i < end; i += kThreads) {
    running.add(widen(x[(n * channels + channel) * plane + p]));
    for (p += kThreads; p >= plane; p -= plane) ++n;
  }
  const Moments<A> total = block_reduce<kThreads>(running.total(), Combine<A>());
  if (threadIdx.x == 0) partial[blockIdx.y * channels + channel] = total;
}

// Block (32 channels, split): a stretch of the rows, neighbouring threads on neighbouring channels.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) row_moments_kernel(const T* __restrict__ x, int64_t rows, int64_t channels,
                                                               int64_t chunk, Moments<A>* __restrict__ partial) {
  const int column = threadIdx.x % kColumns, lane = threadIdx.x / kColumns;
  const int64_t channel = int64_t(blockIdx.x) * kColumns + column;
  const int64_t begin = blockIdx.y * chunk, end = begin + chunk < rows ? begin + chunk : rows;
  RunningMoments<A> running;
  if (channel < channels)
    for (int64_t r = begin + lane; r < end; r += kRows) running.add(widen(x[r * channels + channel]));
  __shared__ SharedArray<Moments<A>, kThreads> lanes;
  lanes[threadIdx.x] = running.total();
  __syncthreads();
  if (lane == 0 && channel < channels) {
    Moments<A> total = lanes[column];
    for (int i = 1; i < kRows; ++i) total = combine(total, lanes[i * kColumns + column]);
    partial[blockIdx.y * channels + channel] = total;
  }
}

// partial[0..channels) becomes the combination of all splits, in their order.
template <typename A>
__global__ void __launch_bounds__(kThreads) combine_kernel(Moments<A>* partial, int64_t channels, int splits) {
  const int64_t channel = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (channel >= channels) return;
  Moments<A> total = partial[channel];
  for (int i = 1; i < splits; ++i) total = combine(total, partial[i * channels + channel]);
  partial[channel] = total;
}

struct AddSums {
  __device__ DistanceSums<double> operator()(const DistanceSums<double>& a, const DistanceSums<double>& b) const {
    return {a.mean + b.mean, a.moment + b.moment};
  }
};

// One block: sums over the channels, the loss, and each channel's pixel gradient.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    match_kernel(const Moments<A>* __restrict__ batch, const A* __restrict__ mean, const A* __restrict__ var,
                 int64_t channels, Distance distance, Moment moment, A* __restrict__ loss,
                 A* __restrict__ coefficients) {
  DistanceSums<double> sums;
  const auto of_batch = [&](int64_t c) { return ChannelStatistics<double>{batch[c].mean, batch[c].variance()}; };
  const auto given = [&](int64_t c) { return ChannelStatistics<double>{mean[c], var[c]}; };
  for (int64_t c = threadIdx.x; c < channels; c += kThreads)
    sums = AddSums()(sums, channel_distance(distance, moment, of_batch(c), given(c)));
  sums = block_reduce<kThreads>(sums, AddSums());
  if (threadIdx.x == 0) *loss = A(distance_loss(distance, sums));
  for (int64_t c = threadIdx.x; c < channels; c += kThreads) {
    const auto g = pixel_gradient<double>(distance, moment, of_batch(c), given(c), sums, double(batch[c].count));
    coefficients[c] = A(g.offset);
    coefficients[channels + c] = A(g.slope);
    coefficients[2 * channels + c] = A(g.mean);
  }
}

// Four neighbouring values a thread; `plane` is 1 for channels_last.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(const A* __restrict__ grad, const T* __restrict__ x, int64_t size, int64_t channels, int64_t plane,
                    const A* __restrict__ coefficients, T* __restrict__ out, bool aligned) {
  const A scale = *grad;
  const int64_t stride = int64_t(gridDim.x) * kThreads * 4;
  for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * 4; i < size; i += stride) {
    int64_t c, p;
    if (size <= 0xffffffff) {  // 32-bit division takes a fraction of the time
      const uint32_t row = static_cast<uint32_t>(i) / static_cast<uint32_t>(plane);
      p = static_cast<uint32_t>(i) - row * static_cast<uint32_t>(plane);
      c = row % static_cast<uint32_t>(channels);
    } else {
      p = i % plane;
      c = i / plane % channels;
    }
    const bool whole = aligned && i + 4 <= size;
    Four<T> values;
    if (whole) values = *reinterpret_cast<const Four<T>*>(x + i);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (!whole) {
        if (i + k >= size) break;
        values.value[k] = x[i + k];
      }
      const A slope = scale * coefficients[channels + c], offset = scale * coefficients[c];
      narrow((widen(values.value[k]) - coefficients[2 * channels + c]) * slope + offset, values.value[k]);
      if (!whole) out[i + k] = values.value[k];
      if (++p == plane) {
        p = 0;
        if (++c == channels) c = 0;
      }
    }
    if (whole) *reinterpret_cast<Four<T>*>(out + i) = values;
  }
}

}  // namespace

int bn_match_splits(const BNMatchShape& shape, int multiprocessors) {
  const int64_t columns = shape.channels_last ? (shape.channels + kColumns - 1) / kColumns : shape.channels;
  const int64_t wanted = (4 * int64_t(multiprocessors) + columns - 1) / columns;
  const int64_t most = (shape.count() + 1023) / 1024;  // no block for less than a few values a thread
  const int64_t splits = wanted < most ? wanted : most;
  return static_cast<int>(splits < 1 ? 1 : splits < 256 ? splits : 256);
}

template <typename T>
void bn_match_forward(const T* x, const BNMatchShape& shape, const Accumulator<T>* mean, const Accumulator<T>* var,
                      Distance distance, Moment moment, int splits, Moments<Accumulator<T>>* partial,
                      Accumulator<T>* loss, Accumulator<T>* coefficients, cudaStream_t stream) {
  using A = Accumulator<T>;
  const int64_t chunk = (shape.count() + splits - 1) / splits;
  if (shape.channels_last)
    launch(row_moments_kernel<T, A>, dim3(blocks_for(shape.channels, kColumns), splits), dim3(kThreads), stream, x,
           shape.count(), shape.channels, chunk, partial);
  else
    launch(plane_moments_kernel<T, A>, dim3(static_cast<unsigned>(shape.channels), splits), dim3(kThreads), stream, x,
           shape.batch, shape.channels, shape.plane, chunk, partial);
  if (splits > 1)
    launch(combine_kernel<A>, dim3(blocks_for(shape.channels, kThreads)), dim3(kThreads), stream, partial,
           shape.channels, splits);
  launch(match_kernel<A>, dim3(1), dim3(kThreads), stream, partial, mean, var, shape.channels, distance, moment, loss,
         coefficients);
}

template <typename T>
void bn_match_backward(const Accumulator<T>* grad, const T* x, const BNMatchShape& shape,
                       const Accumulator<T>* coefficients, T* out, cudaStream_t stream) {
  const int64_t size = shape.count() * shape.channels;
  launch(gradient_kernel<T, Accumulator<T>>, dim3(blocks_for(size, kThreads * 4, 1 << 16)), dim3(kThreads), stream,
         grad, x, size, shape.channels, shape.channels_last ? int64_t(1) : shape.plane, coefficients, out,
         is_aligned(x) && is_aligned(out));
}

#define EXML_INSTANTIATE(T)                                                                                            \
  template void bn_match_forward<T>(const T*, const BNMatchShape&, const Accumulator<T>*, const Accumulator<T>*,       \
                                    Distance, Moment, int, Moments<Accumulator<T>>*, Accumulator<T>*, Accumulator<T>*, \
                                    cudaStream_t);                                                                     \
  template void bn_match_backward<T>(const Accumulator<T>*, const T*, const BNMatchShape&, const Accumulator<T>*, T*,  \
                                     cudaStream_t);
EXML_INSTANTIATE(float)
EXML_INSTANTIATE(double)
EXML_INSTANTIATE(BFloat16)
#undef EXML_INSTANTIATE

}  // namespace exml::cuda
