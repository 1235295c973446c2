#include "math/moments.h"
#include "ops/cuda/bn_match_kernel.h"
#include "ops/cuda/pack.h"
#include "ops/cuda/reduce.h"

namespace exml::cuda {
namespace {

constexpr int kThreads = 256, kFinishThreads = 512;
// Loads that a thread has in flight, and loads that share one shift.
constexpr int kBatch = 4;
template <int kWidth>
constexpr int kRun = kWidth == 1 ? 64 : 16;

// Number of partial results above which one block would take longer over them than a launch more.
constexpr int64_t kManyPartials = 8192;

// Partial moments of channel c from split s are at [c * splits + s] of three arrays: count, mean, m2.
template <typename A>
struct Partials {
  A* data;
  int64_t channels;
  int splits;

  __device__ void put(int64_t c, int s, const Moments<A>& m) const {
    const int64_t size = channels * splits, i = c * splits + s;
    data[i] = m.count;
    data[size + i] = m.mean;
    data[2 * size + i] = m.m2;
  }
  __device__ Moments<double> get(int64_t c, int s) const {
    const int64_t size = channels * splits, i = c * splits + s;
    return {double(data[i]), double(data[size + i]), double(data[2 * size + i])};
  }
};

template <typename A>
__device__ __forceinline__ Moments<A> moments_of_lane(const Moments<A>& m, int offset) {
  return {__shfl_down_sync(kAllLanes, m.count, offset), __shfl_down_sync(kAllLanes, m.mean, offset),
          __shfl_down_sync(kAllLanes, m.m2, offset)};
}

// Contiguous x: block (c, s) takes packs [s * chunk, (s + 1) * chunk) of channel c, numbered through its planes.
// `plane` counts packs.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, sizeof(Accumulator<T>) == 8 ? 2 : 4)
    plane_moments_kernel(const T* __restrict__ x, int64_t batch, int64_t channels, int64_t plane, int64_t chunk,
                         Partials<Accumulator<T>> partials) {
  using A = Accumulator<T>;
  const auto* values = reinterpret_cast<const Pack<T, kWidth>*>(x);
  const int64_t c = blockIdx.x, total = batch * plane, begin = blockIdx.y * chunk;
  const int64_t end = begin + chunk < total ? begin + chunk : total;
  // The pack's image and place in the plane advance by additions only: a division costs more than the load.
  int64_t i = begin + threadIdx.x, n = i / plane, p = i - n * plane;
  const int64_t step_n = kThreads / plane, step_p = kThreads - step_n * plane;
  Moments<A> moments;
  while (i < end) {
    A shift = 0, sum = 0, squares = 0;
    int used = 0;
    for (int b = 0; b < kRun<kWidth> / kBatch && i < end; ++b) {
      Pack<T, kWidth> loaded[kBatch];
      bool valid[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        valid[u] = i < end;
        if (valid[u]) loaded[u] = values[(n * channels + c) * plane + p];
        i += kThreads;
        n += step_n;
        p += step_p;
        if (p >= plane) {
          p -= plane;
          ++n;
        }
      }
      if (b == 0) shift = widen(loaded[0].value[0]);
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (!valid[u]) continue;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const A d = widen(loaded[u].value[j]) - shift;
          sum += d;
          squares += d * d;
        }
        used += kWidth;
      }
    }
    moments = combine(moments, from_shifted_sums<A>(A(used), shift, sum, squares));
  }
  __shared__ A shared[3][kThreads / 32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) moments = combine(moments, moments_of_lane(moments, offset));
  if (threadIdx.x % 32 == 0) {
    const int warp = threadIdx.x / 32;
    shared[0][warp] = moments.count;
    shared[1][warp] = moments.mean;
    shared[2][warp] = moments.m2;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kThreads / 32; ++w)
      moments = combine(moments, Moments<A>{shared[0][w], shared[1][w], shared[2][w]});
    partials.put(c, blockIdx.y, moments);
  }
}

// How a block covers rows of channels: `lanes` threads (a power of two) side by side, each with one pack of channels
// of its own, and kThreads / lanes rows at a time. Rows are split over blockIdx.y.
struct RowTile {
  int lanes;
  int64_t tiles, splits, chunk;
};

// channels_last x.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, 2)
    row_moments_kernel(const T* __restrict__ x, int64_t rows, int64_t channels, RowTile tile,
                       Partials<Accumulator<T>> partials) {
  using A = Accumulator<T>;
  const int lane = threadIdx.x & (tile.lanes - 1), row = threadIdx.x / tile.lanes, step = kThreads / tile.lanes;
  const int64_t c = (int64_t(blockIdx.x) * tile.lanes + lane) * kWidth, begin = blockIdx.y * tile.chunk;
  const int64_t end = c >= channels ? 0 : begin + tile.chunk < rows ? begin + tile.chunk : rows;
  A count = 0, mean[kWidth] = {}, m2[kWidth] = {};
  int64_t r = begin + row;
  while (r < end) {
    A shift[kWidth] = {}, sum[kWidth] = {}, squares[kWidth] = {};
    int used = 0;
    for (int b = 0; b < kRun<1> / kBatch && r < end; ++b) {
      Pack<T, kWidth> loaded[kBatch];
      bool valid[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        valid[u] = r < end;
        if (valid[u]) loaded[u] = *reinterpret_cast<const Pack<T, kWidth>*>(x + r * channels + c);
        r += step;
      }
      if (b == 0)
#pragma unroll
        for (int j = 0; j < kWidth; ++j) shift[j] = widen(loaded[0].value[j]);
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (!valid[u]) continue;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const A d = widen(loaded[u].value[j]) - shift[j];
          sum[j] += d;
          squares[j] += d * d;
        }
        ++used;
      }
    }
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const auto m =
          combine(Moments<A>{count, mean[j], m2[j]}, from_shifted_sums<A>(A(used), shift[j], sum[j], squares[j]));
      mean[j] = m.mean;
      m2[j] = m.m2;
    }
    count += A(used);
  }
  __shared__ A counts[kThreads], means[kWidth][kThreads], m2s[kWidth][kThreads];
  const int me = threadIdx.x;
  counts[me] = count;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    means[j][me] = mean[j];
    m2s[j][me] = m2[j];
  }
  for (int half = step / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row >= half) continue;
    const int other = me + half * tile.lanes;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const auto m = combine(Moments<A>{counts[me], means[j][me], m2s[j][me]},
                             Moments<A>{counts[other], means[j][other], m2s[j][other]});
      means[j][me] = m.mean;
      m2s[j][me] = m.m2;
    }
    counts[me] += counts[other];
  }
  if (row == 0 && c < channels)
#pragma unroll
    for (int j = 0; j < kWidth; ++j) partials.put(c + j, blockIdx.y, Moments<A>{counts[me], means[j][me], m2s[j][me]});
}

// The moments of channel c, in the first of the `lanes` threads that share it. To be called by whole warps.
template <typename A>
__device__ Moments<double> channel_moments(const Partials<A>& partials, int64_t c, int lanes) {
  Moments<double> moments;
  if (c < partials.channels)
    for (int s = threadIdx.x & (lanes - 1); s < partials.splits; s += lanes)
      moments = combine(moments, partials.get(c, s));
  for (int offset = lanes / 2; offset > 0; offset /= 2) moments = combine(moments, moments_of_lane(moments, offset));
  return moments;
}

template <typename A>
__global__ void __launch_bounds__(kThreads) combine_kernel(Partials<A> partials, int lanes, Partials<double> combined) {
  const int64_t c = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / lanes;
  const auto moments = channel_moments(partials, c, lanes);
  if (c < partials.channels && (threadIdx.x & (lanes - 1)) == 0) combined.put(c, 0, moments);
}

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

// out = grad * (offset + slope * (x - mean)). A grid's worth of packs ahead lie `step_planes` planes, `step_channels`
// channels and `step` packs within the plane, so that the loop divides nothing.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    plane_gradient_kernel(const Accumulator<T>* __restrict__ grad, const T* __restrict__ x, int64_t total,
                          int64_t channels, int64_t plane, int64_t step_channels, int64_t step,
                          const Accumulator<T>* __restrict__ coefficients, T* __restrict__ out) {
  using A = Accumulator<T>;
  const auto* values = reinterpret_cast<const Pack<T, kWidth>*>(x);
  auto* results = reinterpret_cast<Pack<T, kWidth>*>(out);
  const A scale = *grad;
  const int64_t first = int64_t(blockIdx.x) * kThreads + threadIdx.x, number = first / plane;
  int64_t p = first - number * plane, c = number % channels;
  for (int64_t i = first; i < total; i += int64_t(gridDim.x) * kThreads) {
    const A offset = scale * coefficients[c], slope = scale * coefficients[channels + c],
            mean = coefficients[2 * channels + c];
    const Pack<T, kWidth> loaded = values[i];
    Pack<T, kWidth> result;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) narrow((widen(loaded.value[j]) - mean) * slope + offset, result.value[j]);
    results[i] = result;
    p += step;
    c += step_channels;
    if (p >= plane) {
      p -= plane;
      ++c;
    }
    if (c >= channels) c -= channels;
  }
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    row_gradient_kernel(const Accumulator<T>* __restrict__ grad, const T* __restrict__ x, int64_t rows,
                        int64_t channels, RowTile tile, const Accumulator<T>* __restrict__ coefficients,
                        T* __restrict__ out) {
  using A = Accumulator<T>;
  const int lane = threadIdx.x & (tile.lanes - 1), step = kThreads / tile.lanes;
  const int64_t c = (int64_t(blockIdx.x) * tile.lanes + lane) * kWidth, begin = blockIdx.y * tile.chunk;
  const int64_t end = begin + tile.chunk < rows ? begin + tile.chunk : rows;
  if (c >= channels) return;
  const A scale = *grad;
  A offset[kWidth], slope[kWidth], mean[kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    offset[j] = scale * coefficients[c + j];
    slope[j] = scale * coefficients[channels + c + j];
    mean[j] = coefficients[2 * channels + c + j];
  }
#pragma unroll 2
  for (int64_t r = begin + threadIdx.x / tile.lanes; r < end; r += step) {
    const auto loaded = *reinterpret_cast<const Pack<T, kWidth>*>(x + r * channels + c);
    Pack<T, kWidth> result;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) narrow((widen(loaded.value[j]) - mean[j]) * slope[j] + offset[j], result.value[j]);
    *reinterpret_cast<Pack<T, kWidth>*>(out + r * channels + c) = result;
  }
}

// Blocks that keep every multiprocessor busy, with work enough for each.
int64_t splits_for(int64_t units, int64_t least_units, int64_t tiles, int64_t blocks) {
  const int64_t wanted = divide_up(blocks, tiles), possible = divide_up(units, least_units);
  return wanted < possible ? wanted : possible;
}

// units: packs in a row.
RowTile row_tile(int64_t rows, int64_t units, int64_t blocks) {
  // The widest tile that leaves at most a quarter of its lanes without a channel.
  int lanes = 32;
  while (lanes > 4 && 4 * (divide_up(units, lanes) * lanes - units) > units) lanes /= 2;
  if (units < 4) lanes = lanes_for(units);
  const int64_t tiles = divide_up(units, lanes), step = kThreads / lanes;
  const int64_t chunk = divide_up(rows, splits_for(rows, step * kBatch, tiles, blocks));
  return {lanes, tiles, divide_up(rows, chunk), chunk};
}

template <typename T>
bool packed(const T* x, const Activation& shape) {
  return packs(x, shape.channels_last ? shape.channels : shape.plane);
}

struct ForwardPlan {
  bool packed;
  RowTile tile;  // contiguous: one channel a tile, chunks in packs
};

template <typename T>
ForwardPlan forward_plan(const T* x, const Activation& shape, int multiprocessors) {
  ForwardPlan plan{packed(x, shape), {}};
  const int64_t width = plan.packed ? kPackWidth<T> : 1;
  // Whole waves: of the kernel for packed rows, two or three blocks fit a multiprocessor; of the others, at least four.
  const int64_t blocks = (shape.channels_last && plan.packed ? 6 : 4) * int64_t(multiprocessors);
  if (shape.channels_last) {
    plan.tile = row_tile(shape.count(), shape.channels / width, blocks);
  } else {
    const int64_t units = shape.count() / width;
    const int64_t chunk = divide_up(units, splits_for(units, kThreads * kBatch, shape.channels, blocks));
    plan.tile = {1, shape.channels, divide_up(units, chunk), chunk};
  }
  return plan;
}

template <typename T, int kWidth>
void moments(const T* x, const Activation& shape, const RowTile& tile, Partials<Accumulator<T>> partials,
             cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(tile.tiles), static_cast<unsigned>(tile.splits));
  if (shape.channels_last)
    launch(row_moments_kernel<T, kWidth>, grid, kThreads, stream, x, shape.count(), shape.channels, tile, partials);
  else
    launch(plane_moments_kernel<T, kWidth>, grid, kThreads, stream, x, shape.batch, shape.channels,
           shape.plane / kWidth, tile.chunk, partials);
}

template <typename T, int kWidth>
void gradient(const Accumulator<T>* grad, const T* x, const Activation& shape, const Accumulator<T>* coefficients,
              int64_t blocks, T* out, cudaStream_t stream) {
  if (shape.channels_last) {
    const auto tile = row_tile(shape.count(), shape.channels / kWidth, blocks);
    launch(row_gradient_kernel<T, kWidth>, dim3(static_cast<unsigned>(tile.tiles), static_cast<unsigned>(tile.splits)),
           kThreads, stream, grad, x, shape.count(), shape.channels, tile, coefficients, out);
  } else {
    const int64_t plane = shape.plane / kWidth, total = shape.batch * shape.channels * plane;
    const int64_t needed = divide_up(total, kThreads), grid = needed < blocks ? needed : blocks;
    const int64_t ahead = grid * kThreads;
    launch(plane_gradient_kernel<T, kWidth>, static_cast<unsigned>(grid), kThreads, stream, grad, x, total,
           shape.channels, plane, ahead / plane % shape.channels, ahead % plane, coefficients, out);
  }
}

}  // namespace

// The workspace holds the channels' statistics, their combined moments (both in double) and the partial moments.
template <typename T>
int64_t bn_match_workspace(const T* x, const Activation& shape, int multiprocessors) {
  const auto plan = forward_plan(x, shape, multiprocessors);
  return shape.channels * (5 * sizeof(double) + 3 * plan.tile.splits * sizeof(Accumulator<T>));
}

template <typename T>
void bn_match_forward(const T* x, const Activation& shape, const Accumulator<T>* mean, const Accumulator<T>* var,
                      Distance distance, Moment moment, int multiprocessors, void* workspace, Accumulator<T>* loss,
                      Accumulator<T>* coefficients, cudaStream_t stream) {
  using A = Accumulator<T>;
  const auto plan = forward_plan(x, shape, multiprocessors);
  const int64_t channels = shape.channels;
  const int splits = static_cast<int>(plan.tile.splits), lanes = lanes_for(splits);
  auto* statistics = static_cast<double*>(workspace);
  const Partials<double> combined{statistics + 2 * channels, channels, 1};
  const Partials<A> partials{reinterpret_cast<A*>(statistics + 5 * channels), channels, splits};
  if (plan.packed)
    moments<T, kPackWidth<T>>(x, shape, plan.tile, partials, stream);
  else
    moments<T, 1>(x, shape, plan.tile, partials, stream);
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
void bn_match_backward(const Accumulator<T>* grad, const T* x, const Activation& shape,
                       const Accumulator<T>* coefficients, int multiprocessors, T* out, cudaStream_t stream) {
  const int64_t blocks = 8 * int64_t(multiprocessors);
  if (packed(x, shape) && packed(out, shape))
    gradient<T, kPackWidth<T>>(grad, x, shape, coefficients, blocks, out, stream);
  else
    gradient<T, 1>(grad, x, shape, coefficients, blocks, out, stream);
}

#define EXML_INSTANTIATE(T)                                                                                           \
  template int64_t bn_match_workspace(const T*, const Activation&, int);                                              \
  template void bn_match_forward(const T*, const Activation&, const Accumulator<T>*, const Accumulator<T>*, Distance, \
                                 Moment, int, void*, Accumulator<T>*, Accumulator<T>*, cudaStream_t);                 \
  template void bn_match_backward(const Accumulator<T>*, const T*, const Activation&, const Accumulator<T>*, int, T*, \
                                  cudaStream_t);
EXML_INSTANTIATE(float)
EXML_INSTANTIATE(double)
EXML_INSTANTIATE(BFloat16)
#undef EXML_INSTANTIATE

}  // namespace exml::cuda
