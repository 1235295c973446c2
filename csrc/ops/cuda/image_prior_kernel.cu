#include "ops/cuda/image_prior_kernel.h"
#include "ops/cuda/reduce.h"

namespace exml::cuda {
namespace {

constexpr int kThreads = 256;
template <typename A>
constexpr int kTile = sizeof(A) == 8 ? 16 : 32;  // side of the square of pixels that a block handles

// Where a block's tile lies. Channels come first in the numbering: in channels_last images their tiles share memory.
struct Tiles {
  int64_t channels, height, width;
  int64_t image_stride, channel_stride, row_stride, column_stride;  // in values
  int across, per_plane;

  int64_t per_image() const { return channels * per_plane; }
};

struct Tile {
  int64_t image, plane;  // plane: place of its first pixel in memory
  int64_t top, left;
};

__device__ __forceinline__ Tile this_tile(const Tiles& tiles, int side) {
  const int64_t rest = blockIdx.x / tiles.channels, channel = blockIdx.x - rest * tiles.channels;
  const int64_t image = rest / tiles.per_plane;
  const int place = static_cast<int>(rest - image * tiles.per_plane), row = place / tiles.across;
  return {image, image * tiles.image_stride + channel * tiles.channel_stride, int64_t(row) * side,
          int64_t(place - row * tiles.across) * side};
}

// Fills kSide x kSide values: a tile and kHalo around it, reflected at the border of the image. Values whose reflection
// is outside the image are zero; their blur weight is zero.
template <int kSide, int kHalo, typename T, typename A>
__device__ __forceinline__ void load_tile(const T* __restrict__ x, const Tiles& tiles, const Tile& tile, A* values) {
  for (int e = threadIdx.x; e < kSide * kSide; e += kThreads) {
    const int i = e / kSide, j = e - i * kSide;
    const int64_t row = reflect(tile.top + i - kHalo, tiles.height);
    const int64_t column = reflect(tile.left + j - kHalo, tiles.width);
    const bool inside = row >= 0 && row < tiles.height && column >= 0 && column < tiles.width;
    values[e] = inside ? widen(x[tile.plane + row * tiles.row_stride + column * tiles.column_stride]) : A(0);
  }
}

// Blurs kRows rows of kColumns + 2 * kRadius values horizontally into kRows x kColumns.
template <int kRows, int kColumns, int kRadius, typename A>
__device__ __forceinline__ void blur_rows(const A* values, int stride, const BlurWindow<A>& window, A* blurred) {
  for (int e = threadIdx.x; e < kRows * kColumns; e += kThreads) {
    const int i = e / kColumns, j = e - i * kColumns;
    A value = 0;
#pragma unroll
    for (int t = 0; t <= 2 * kRadius; ++t) value += window.taps[t] * values[i * stride + j + t];
    blurred[e] = value;
  }
}

// The sums of one tile; image by image, partial sums are [sum][tile].
template <typename T, int kRadius>
__global__ void __launch_bounds__(kThreads, 2)
    tile_sums_kernel(const T* __restrict__ x, Tiles tiles, const __grid_constant__ BlurWindow<Accumulator<T>> window,
                     double* __restrict__ partials) {
  using A = Accumulator<T>;
  constexpr int kInner = kTile<A>, kSide = kInner + 2 * kRadius;
  __shared__ A values[kSide * kSide], blurred[kSide * kInner];
  const Tile tile = this_tile(tiles, kInner);
  load_tile<kSide, kRadius>(x, tiles, tile, values);
  __syncthreads();
  blur_rows<kSide, kInner, kRadius>(values, kSide, window, blurred);
  __syncthreads();
  A sums[kPriorSums] = {};
  for (int e = threadIdx.x; e < kInner * kInner; e += kThreads) {
    const int i = e / kInner, j = e - i * kInner;
    if (tile.top + i >= tiles.height || tile.left + j >= tiles.width) continue;
    const bool below = tile.top + i + 1 < tiles.height, right = tile.left + j + 1 < tiles.width;
    const A* at = values + (i + kRadius) * kSide + j + kRadius;
    const A differences[4] = {right ? at[0] - at[1] : A(0), below ? at[0] - at[kSide] : A(0),
                              below && right ? at[kSide] - at[1] : A(0), below && right ? at[0] - at[kSide + 1] : A(0)};
#pragma unroll
    for (int d = 0; d < 4; ++d) {
      sums[kAbs + d] += std::fabs(differences[d]);
      sums[kSquare + d] += differences[d] * differences[d];
    }
    A residual = at[0];
#pragma unroll
    for (int t = 0; t <= 2 * kRadius; ++t) residual -= window.taps[t] * blurred[(i + t) * kInner + j];
    sums[kBlur] += residual * residual;
    sums[kNorm] += at[0] * at[0];
  }
  __shared__ A warps[kPriorSums][kThreads / 32];
#pragma unroll
  for (int k = 0; k < kPriorSums; ++k) {
    const A sum = warp_reduce(sums[k], Sum{});
    if (threadIdx.x % 32 == 0) warps[k][threadIdx.x / 32] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= kPriorSums) return;
  double total = 0;
  for (int w = 0; w < kThreads / 32; ++w) total += double(warps[threadIdx.x][w]);
  const int64_t per_image = tiles.channels * tiles.per_plane, number = blockIdx.x - tile.image * per_image;
  partials[(tile.image * kPriorSums + threadIdx.x) * per_image + number] = total;
}

// Block b adds up `count` partial sums of each kind, those of sum k `sum_stride` apart from those of k + 1, in a fixed
// order; a warp a sum. Where `losses` is given, b is a group and its losses are formed.
__device__ __forceinline__ void add_partials(const double* partials, int64_t count, int64_t sum_stride, int64_t stride,
                                             double* shared, double* __restrict__ sums) {
  const int k = threadIdx.x / 32;
  double total = 0;
  for (int64_t i = threadIdx.x % 32; i < count; i += 32) total += partials[k * sum_stride + i * stride];
  total = warp_reduce(total, Sum{});
  if (threadIdx.x % 32 == 0) sums[k] = shared[k] = total;
}

template <typename A>
__global__ void __launch_bounds__(32 * kPriorSums)
    group_sums_kernel(const double* __restrict__ partials, int64_t block_stride, int64_t count, int64_t sum_stride,
                      int64_t stride, double planes, int64_t height, int64_t width, double* __restrict__ sums,
                      A* __restrict__ losses) {
  __shared__ double shared[kPriorSums];
  add_partials(partials + blockIdx.x * block_stride, count, sum_stride, stride, shared, sums + blockIdx.x * kPriorSums);
  __syncthreads();
  if (losses == nullptr || threadIdx.x > 0) return;
  double group[kPriorLosses];
  prior_losses(shared, planes, height, width, group);
#pragma unroll
  for (int i = 0; i < kPriorLosses; ++i) losses[i * int64_t(gridDim.x) + blockIdx.x] = static_cast<A>(group[i]);
}

template <typename A>
__global__ void __launch_bounds__(kThreads, 1)
    pulls_kernel(const A* __restrict__ grads, const double* __restrict__ sums, int64_t groups, double planes,
                 int64_t height, int64_t width, PriorPull<A>* __restrict__ pulls) {
  const int64_t g = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (g >= groups) return;
  double group[kPriorLosses];
#pragma unroll
  for (int i = 0; i < kPriorLosses; ++i) group[i] = double(grads[i * groups + g]);
  pulls[g] = prior_pull<A>(group, sums + g * kPriorSums, planes, height, width);
}

// The gradient of one tile. The blur's part is r - B^T r with the residual r = x - B x, so r is needed kRadius around
// the tile, and x twice as far.
template <typename T, int kRadius>
__global__ void __launch_bounds__(kThreads, 2)
    tile_gradient_kernel(const T* __restrict__ x, Tiles tiles,
                         const __grid_constant__ BlurWindow<Accumulator<T>> window,
                         const PriorPull<Accumulator<T>>* __restrict__ pulls, bool per_image, T* __restrict__ out) {
  using A = Accumulator<T>;
  constexpr int kInner = kTile<A>, kMiddle = kInner + 2 * kRadius, kSide = kInner + 4 * kRadius;
  constexpr int kTaps = 2 * kRadius + 1;
  __shared__ A values[kSide * kSide], blurred[kSide * kMiddle], residuals[kMiddle * kMiddle];
  __shared__ A weights[2][kTaps * kInner];  // of the adjoint, down the columns and along the rows: [tap][pixel]
  const Tile tile = this_tile(tiles, kInner);
  load_tile<kSide, 2 * kRadius>(x, tiles, tile, values);
  for (int e = threadIdx.x; e < kTaps * kInner; e += kThreads) {
    const int t = e / kInner - kRadius, i = e % kInner;
    const auto weight = [&](int64_t pixel, int64_t size) {
      const bool inside = pixel < size && pixel + t >= 0 && pixel + t < size;
      return inside ? blur_weight(pixel + t, pixel, size, window) : A(0);
    };
    weights[0][e] = weight(tile.top + i, tiles.height);
    weights[1][e] = weight(tile.left + i, tiles.width);
  }
  __syncthreads();
  blur_rows<kSide, kMiddle, kRadius>(values, kSide, window, blurred);
  __syncthreads();
  for (int e = threadIdx.x; e < kMiddle * kMiddle; e += kThreads) {
    const int i = e / kMiddle, j = e - i * kMiddle;
    const int64_t row = tile.top + i - kRadius, column = tile.left + j - kRadius;
    A residual = 0;
    if (row >= 0 && row < tiles.height && column >= 0 && column < tiles.width) {
      residual = values[(i + kRadius) * kSide + j + kRadius];
#pragma unroll
      for (int t = 0; t < kTaps; ++t) residual -= window.taps[t] * blurred[(i + t) * kMiddle + j];
    }
    residuals[e] = residual;
  }
  __syncthreads();
  A* adjoint = blurred;  // no longer needed; kInner x kMiddle
  for (int e = threadIdx.x; e < kInner * kMiddle; e += kThreads) {
    const int i = e / kMiddle, j = e - i * kMiddle;
    A value = 0;
#pragma unroll
    for (int t = 0; t < kTaps; ++t) value += weights[0][t * kInner + i] * residuals[(i + t) * kMiddle + j];
    adjoint[e] = value;
  }
  __syncthreads();
  const PriorPull<A> pull = pulls[per_image ? tile.image : 0];
  for (int e = threadIdx.x; e < kInner * kInner; e += kThreads) {
    const int i = e / kInner, j = e - i * kInner;
    const int64_t row = tile.top + i, column = tile.left + j;
    if (row >= tiles.height || column >= tiles.width) continue;
    A residual = residuals[(i + kRadius) * kMiddle + j + kRadius];
#pragma unroll
    for (int t = 0; t < kTaps; ++t) residual -= weights[1][t * kInner + j] * adjoint[i * kMiddle + j + t];
    const A* at = values + (i + 2 * kRadius) * kSide + j + 2 * kRadius;
    const A pixel = *at;
    A grad = pull.norm * pixel + pull.blur * residual;
    // The gradient of a pixel has one term for each neighbour, because each difference has two pixels.
    const bool above = row > 0, below = row + 1 < tiles.height, left = column > 0, right = column + 1 < tiles.width;
    if (left) grad += difference_pull(pull, 0, pixel - at[-1]);
    if (right) grad += difference_pull(pull, 0, pixel - at[1]);
    if (above) grad += difference_pull(pull, 1, pixel - at[-kSide]);
    if (below) grad += difference_pull(pull, 1, pixel - at[kSide]);
    if (below && left) grad += difference_pull(pull, 2, pixel - at[kSide - 1]);
    if (above && right) grad += difference_pull(pull, 2, pixel - at[1 - kSide]);
    if (above && left) grad += difference_pull(pull, 3, pixel - at[-kSide - 1]);
    if (below && right) grad += difference_pull(pull, 3, pixel - at[kSide + 1]);
    narrow(grad, out[tile.plane + row * tiles.row_stride + column * tiles.column_stride]);
  }
}

template <typename A>
Tiles tiles_of(const Images& shape) {
  const int64_t channels = shape.channels, plane = shape.height * shape.width;
  const int64_t across = divide_up(shape.width, kTile<A>), down = divide_up(shape.height, kTile<A>);
  const int64_t step = shape.channels_last ? channels : 1;
  return {channels,
          shape.height,
          shape.width,
          channels * plane,
          shape.channels_last ? 1 : plane,
          step * shape.width,
          step,
          static_cast<int>(across),
          static_cast<int>(across * down)};
}

// The same blur with a window of radius kRadius, the added taps zero.
template <int kRadius, typename A>
BlurWindow<A> widened(const BlurWindow<A>& window) {
  BlurWindow<A> result{kRadius, {}};
  for (int t = -window.radius; t <= window.radius; ++t) result.taps[kRadius + t] = window.taps[window.radius + t];
  return result;
}

// Calls f with the smallest sufficient radius for which a kernel exists, as a compile-time constant.
template <typename F>
void with_radius(int radius, F f) {
  if (radius <= 1)
    f(std::integral_constant<int, 1>());
  else if (radius <= 3)
    f(std::integral_constant<int, 3>());
  else
    f(std::integral_constant<int, kMaxBlurKernel / 2>());
}

}  // namespace

// The workspace holds the tiles' sums, then the images'.
template <typename T>
int64_t image_prior_forward_workspace(const Images& shape) {
  return shape.images * kPriorSums * (tiles_of<Accumulator<T>>(shape).per_image() + 1) * sizeof(double);
}

template <typename T>
int64_t image_prior_backward_workspace(const Images& shape) {
  return shape.groups() * sizeof(PriorPull<Accumulator<T>>);
}

template <typename T>
void image_prior_forward(const T* x, const Images& shape, const BlurWindow<Accumulator<T>>& window, void* workspace,
                         Accumulator<T>* losses, double* sums, cudaStream_t stream) {
  using A = Accumulator<T>;
  const Tiles tiles = tiles_of<A>(shape);
  const int64_t images = shape.images, per_image = tiles.per_image();
  auto* partials = static_cast<double*>(workspace);
  double* image_sums = partials + images * kPriorSums * per_image;
  with_radius(window.radius, [&](auto radius) {
    launch(tile_sums_kernel<T, radius()>, static_cast<unsigned>(images * per_image), kThreads, stream, x, tiles,
           widened<radius()>(window), partials);
  });
  const bool one_group_each = shape.groups() == images;
  launch(group_sums_kernel<A>, static_cast<unsigned>(images), 32 * kPriorSums, stream, partials, kPriorSums * per_image,
         per_image, per_image, 1, shape.planes_per_group(), shape.height, shape.width,
         one_group_each ? sums : image_sums, one_group_each ? losses : nullptr);
  if (!one_group_each)
    launch(group_sums_kernel<A>, 1, 32 * kPriorSums, stream, image_sums, 0, images, 1, kPriorSums,
           shape.planes_per_group(), shape.height, shape.width, sums, losses);
}

template <typename T>
void image_prior_backward(const Accumulator<T>* grads, const T* x, const double* sums, const Images& shape,
                          const BlurWindow<Accumulator<T>>& window, void* workspace, T* out, cudaStream_t stream) {
  using A = Accumulator<T>;
  const Tiles tiles = tiles_of<A>(shape);
  auto* pulls = static_cast<PriorPull<A>*>(workspace);
  launch(pulls_kernel<A>, static_cast<unsigned>(divide_up(shape.groups(), kThreads)), kThreads, stream, grads, sums,
         shape.groups(), shape.planes_per_group(), shape.height, shape.width, pulls);
  with_radius(window.radius, [&](auto radius) {
    launch(tile_gradient_kernel<T, radius()>, static_cast<unsigned>(shape.images * tiles.per_image()), kThreads, stream,
           x, tiles, widened<radius()>(window), pulls, shape.per_image, out);
  });
}

#define EXML_INSTANTIATE(T)                                                                            \
  template int64_t image_prior_forward_workspace<T>(const Images&);                                    \
  template int64_t image_prior_backward_workspace<T>(const Images&);                                   \
  template void image_prior_forward(const T*, const Images&, const BlurWindow<Accumulator<T>>&, void*, \
                                    Accumulator<T>*, double*, cudaStream_t);                           \
  template void image_prior_backward(const Accumulator<T>*, const T*, const double*, const Images&,    \
                                     const BlurWindow<Accumulator<T>>&, void*, T*, cudaStream_t);
EXML_INSTANTIATE(float)
EXML_INSTANTIATE(double)
EXML_INSTANTIATE(BFloat16)
#undef EXML_INSTANTIATE

}  // namespace exml::cuda
