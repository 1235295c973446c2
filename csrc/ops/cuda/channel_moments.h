// Channel moments in one pass over an activation, and elementwise passes with constants a channel, in both memory
// orders.
//
// A visitor processes the values: Visit::At<kWidth, kStep>, constructed from the visitor and a channel, is called with
// each pack and the index of its first value. Lane j of a pack belongs to channel c + j * kStep.
#pragma once

#include "math/moments.h"
#include "ops/cuda/channel_shape.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/pack.h"
#include "ops/cuda/reduce.h"

namespace exml::cuda {
namespace {

constexpr int kThreads = 256;
// Loads that a thread has in flight, and loads that share one shift.
constexpr int kBatch = 4;
template <int kWidth>
constexpr int kRun = kWidth == 1 ? 64 : 16;

// With more partial results than this, one block takes longer to combine them than a second launch takes.
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
template <typename T, int kWidth, typename Visit>
__global__ void __launch_bounds__(kThreads, sizeof(Accumulator<T>) == 8 ? 2 : Visit::kBlocks)
    plane_moments_kernel(const T* __restrict__ x, int64_t batch, int64_t channels, int64_t plane, int64_t chunk,
                         Partials<Accumulator<T>> partials, Visit visit) {
  using A = Accumulator<T>;
  const auto* values = reinterpret_cast<const Pack<T, kWidth>*>(x);
  const typename Visit::template At<kWidth, 0> at(visit, blockIdx.x);
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
      int64_t place[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        valid[u] = i < end;
        place[u] = (n * channels + c) * plane + p;
        if (valid[u]) loaded[u] = values[place[u]];
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
        at(loaded[u], place[u] * kWidth);
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
template <typename T, int kWidth, typename Visit>
__global__ void __launch_bounds__(kThreads, 2)
    row_moments_kernel(const T* __restrict__ x, int64_t rows, int64_t channels, RowTile tile,
                       Partials<Accumulator<T>> partials, Visit visit) {
  using A = Accumulator<T>;
  const int lane = threadIdx.x & (tile.lanes - 1), row = threadIdx.x / tile.lanes, step = kThreads / tile.lanes;
  const int64_t c = (int64_t(blockIdx.x) * tile.lanes + lane) * kWidth, begin = blockIdx.y * tile.chunk;
  // Rows are numbered from the first of their split, in 32 bits: 64 bits take registers that wide packs lack.
  const int end = c >= channels ? 0 : static_cast<int>(tile.chunk < rows - begin ? tile.chunk : rows - begin);
  const int64_t first = begin * channels + c;
  const typename Visit::template At<kWidth, 1> at(visit, c < channels ? c : 0);
  A count = 0, mean[kWidth] = {}, m2[kWidth] = {};
  int r = row;
  while (r < end) {
    A shift[kWidth] = {}, sum[kWidth] = {}, squares[kWidth] = {};
    int used = 0;
    for (int b = 0; b < kRun<1> / kBatch && r < end; ++b) {
      const int start = r;
      Pack<T, kWidth> loaded[kBatch];
      bool valid[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        valid[u] = r < end;
        if (valid[u]) loaded[u] = *reinterpret_cast<const Pack<T, kWidth>*>(x + first + r * channels);
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
        at(loaded[u], first + (start + u * step) * channels);
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

// Calls the visitor for all packs of contiguous x. A grid's worth of packs ahead lie `step_planes` planes,
// `step_channels` channels and `step` packs within the plane, so that the loop divides nothing.
template <int kWidth, typename Visit>
__global__ void __launch_bounds__(kThreads)
    plane_kernel(int64_t total, int64_t channels, int64_t plane, int64_t step_channels, int64_t step, Visit visit) {
  const int64_t first = int64_t(blockIdx.x) * kThreads + threadIdx.x, number = first / plane;
  int64_t p = first - number * plane, c = number % channels;
  for (int64_t i = first; i < total; i += int64_t(gridDim.x) * kThreads) {
    typename Visit::template At<kWidth, 0>(visit, c)(i * kWidth);
    p += step;
    c += step_channels;
    if (p >= plane) {
      p -= plane;
      ++c;
    }
    if (c >= channels) c -= channels;
  }
}

// Of channels_last x.
template <int kWidth, typename Visit>
__global__ void __launch_bounds__(kThreads, 2) row_kernel(int64_t rows, int64_t channels, RowTile tile, Visit visit) {
  const int lane = threadIdx.x & (tile.lanes - 1), step = kThreads / tile.lanes;
  const int64_t c = (int64_t(blockIdx.x) * tile.lanes + lane) * kWidth, begin = blockIdx.y * tile.chunk;
  const int64_t end = begin + tile.chunk < rows ? begin + tile.chunk : rows;
  if (c >= channels) return;
  const typename Visit::template At<kWidth, 1> at(visit, c);
#pragma unroll 2
  for (int64_t r = begin + threadIdx.x / tile.lanes; r < end; r += step) at(r * channels + c);
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
bool packed(const T* x, const ChannelShape& shape) {
  return packs(x, shape.channels_last ? shape.channels : shape.plane);
}

struct ForwardPlan {
  bool packed;
  RowTile tile;  // contiguous: one channel a tile, chunks in packs
};

template <typename T>
ForwardPlan forward_plan(bool packed, const ChannelShape& shape, int multiprocessors) {
  ForwardPlan plan{packed, {}};
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

template <int kWidth, typename T, typename Visit>
void moments(const T* x, const ChannelShape& shape, const RowTile& tile, Partials<Accumulator<T>> partials, Visit visit,
             cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(tile.tiles), static_cast<unsigned>(tile.splits));
  if (shape.channels_last)
    launch(row_moments_kernel<T, kWidth, Visit>, grid, kThreads, stream, x, shape.count(), shape.channels, tile,
           partials, visit);
  else
    launch(plane_moments_kernel<T, kWidth, Visit>, grid, kThreads, stream, x, shape.batch, shape.channels,
           shape.plane / kWidth, tile.chunk, partials, visit);
}

template <int kWidth, typename Visit>
void for_each_pack(const ChannelShape& shape, int64_t blocks, Visit visit, cudaStream_t stream) {
  if (shape.channels_last) {
    const auto tile = row_tile(shape.count(), shape.channels / kWidth, blocks);
    launch(row_kernel<kWidth, Visit>, dim3(static_cast<unsigned>(tile.tiles), static_cast<unsigned>(tile.splits)),
           kThreads, stream, shape.count(), shape.channels, tile, visit);
  } else {
    const int64_t plane = shape.plane / kWidth, total = shape.batch * shape.channels * plane;
    const int64_t needed = divide_up(total, kThreads), grid = needed < blocks ? needed : blocks;
    const int64_t ahead = grid * kThreads;
    launch(plane_kernel<kWidth, Visit>, static_cast<unsigned>(grid), kThreads, stream, total, shape.channels, plane,
           ahead / plane % shape.channels, ahead % plane, visit);
  }
}

}  // namespace
}  // namespace exml::cuda
