#include "ops/cuda/image_prior_kernel.h"
#include "ops/cuda/reduce.h"

namespace exml::cuda {
namespace {

// A block computes a tile of one channel of one image; shared memory holds the tile and the halo that it needs.
constexpr int kTile = 16, kThreads = kTile * kTile, kMaxRadius = kMaxBlurKernel / 2;
constexpr int kResidualSide = kTile + 2 * kMaxRadius, kPixelSide = kTile + 4 * kMaxRadius;

struct Tile {
  int64_t image, channel, top, left, offset;

  __device__ Tile(const Images& images) {
    const int64_t across = (images.width + kTile - 1) / kTile, down = (images.height + kTile - 1) / kTile;
    int64_t i = blockIdx.x;
    left = i % across * kTile;
    i /= across;
    top = i % down * kTile;
    i /= down;
    channel = i % images.channels;
    image = i / images.channels;
    offset = image * images.image_stride + channel * images.channel_stride;
  }
};

// pixels[y][x], side * side: the tile and `halo` pixels around it, reflected at the border. What lies further outside
// than a reflection reaches is never used and set to zero.
template <typename T, typename A>
__device__ void load_pixels(const T* x, const Images& images, const Tile& tile, int halo, A* pixels) {
  const int side = kTile + 2 * halo;
  for (int i = threadIdx.x; i < side * side; i += kThreads) {
    const int64_t y = reflect(tile.top - halo + i / side, images.height);
    const int64_t z = reflect(tile.left - halo + i % side, images.width);
    const bool inside = y >= 0 && y < images.height && z >= 0 && z < images.width;
    pixels[i] = inside ? A(widen(x[tile.offset + y * images.row_stride + z * images.pixel_stride])) : A(0);
  }
  __syncthreads();
}

// The blur residual on the tile and `rim` pixels around it, zero outside the image. rows: scratch.
template <typename A>
__device__ void blur_residual(const A* pixels, int halo, const Images& images, const Tile& tile, int rim,
                              const BlurWindow<A>& window, A* rows, A* residual) {
  const int side = kTile + 2 * halo, inner = kTile + 2 * rim, radius = window.radius, margin = halo - rim;
  for (int i = threadIdx.x; i < side * inner; i += kThreads) {
    const A* row = pixels + i / inner * side + i % inner + margin - radius;
    A value = 0;
    for (int t = 0; t <= 2 * radius; ++t) value += window.taps[t] * row[t];
    rows[i] = value;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < inner * inner; i += kThreads) {
    const int y = i / inner, z = i % inner;
    const int64_t at_y = tile.top - rim + y, at_z = tile.left - rim + z;
    A value = pixels[(y + margin) * side + z + margin];
    for (int t = 0; t <= 2 * radius; ++t) value -= window.taps[t] * rows[(y + margin - radius + t) * inner + z];
    residual[i] = at_y >= 0 && at_y < images.height && at_z >= 0 && at_z < images.width ? value : A(0);
  }
  __syncthreads();
}

template <typename A>
__device__ void share_window(const BlurWindow<A>& given, BlurWindow<A>& window) {
  if (threadIdx.x == 0) window.radius = given.radius;
#pragma unroll
  for (int i = 0; i < kMaxBlurKernel;
       ++i)  // unrolled: an index known only at run time would put `given` into local memory
    if (int(threadIdx.x) == i) window.taps[i] = given.taps[i];
  __syncthreads();
}

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) prior_sums_kernel(const T* __restrict__ x, const Images images,
                                                              const BlurWindow<A> given, double* __restrict__ partial) {
  constexpr int kHalo = kMaxRadius > 1 ? kMaxRadius : 1, kSide = kTile + 2 * kHalo;
  __shared__ A pixels[kSide * kSide], rows[kSide * kTile], residual[kThreads];
  __shared__ BlurWindow<A> window;
  share_window(given, window);
  const Tile tile(images);
  const int halo = window.radius > 1 ? window.radius : 1, side = kTile + 2 * halo;
  load_pixels(x, images, tile, halo, pixels);
  blur_residual(pixels, halo, images, tile, 0, window, rows, residual);
  const int row = threadIdx.x / kTile, column = threadIdx.x % kTile;
  const A* here = pixels + (row + halo) * side + column + halo;
  const bool inside = tile.top + row < images.height && tile.left + column < images.width;
  const bool right = inside && tile.left + column + 1 < images.width;
  const bool below = inside && tile.top + row + 1 < images.height;
  const A differences[4] = {right ? here[0] - here[1] : A(0), below ? here[0] - here[side] : A(0),
                            right && below ? here[side] - here[1] : A(0),
                            right && below ? here[0] - here[side + 1] : A(0)};
  const auto put = [&](int sum, A value) {
    const double total = block_reduce<kThreads>(double(value), Add<double>());
    if (threadIdx.x == 0) partial[int64_t(blockIdx.x) * kPriorSums + sum] = total;
  };
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    put(kAbs + i, differences[i] < A(0) ? -differences[i] : differences[i]);
    put(kSquare + i, differences[i] * differences[i]);
  }
  put(kBlur, residual[threadIdx.x] * residual[threadIdx.x]);
  put(kNorm, inside ? here[0] * here[0] : A(0));
}

// Block g: the sums of group g from its blocks' partial ones, and the losses.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    prior_losses_kernel(const double* __restrict__ partial, int64_t blocks, double planes, int64_t height,
                        int64_t width, int64_t groups, A* __restrict__ losses, double* __restrict__ sums) {
  const int64_t group = blockIdx.x;
  double total[kPriorSums];
#pragma unroll
  for (int sum = 0; sum < kPriorSums; ++sum) {
    double value = 0;
    for (int64_t i = threadIdx.x; i < blocks; i += kThreads) value += partial[(group * blocks + i) * kPriorSums + sum];
    total[sum] = block_reduce<kThreads>(value, Add<double>());
  }
  if (threadIdx.x != 0) return;
  double values[kPriorLosses];
  prior_losses(total, planes, height, width, values);
#pragma unroll
  for (int sum = 0; sum < kPriorSums; ++sum) sums[group * kPriorSums + sum] = total[sum];
#pragma unroll
  for (int i = 0; i < kPriorLosses; ++i) losses[i * groups + group] = A(values[i]);
}

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    prior_gradient_kernel(const A* __restrict__ grads, const T* __restrict__ x, const double* __restrict__ sums,
                          const Images images, int64_t groups, const BlurWindow<A> given, T* __restrict__ out) {
  __shared__ A pixels[kPixelSide * kPixelSide], rows[kPixelSide * kResidualSide];
  __shared__ A residual[kResidualSide * kResidualSide];
  __shared__ BlurWindow<A> window;
  __shared__ PriorPull<A> pull;
  share_window(given, window);
  const Tile tile(images);
  if (threadIdx.x == 0) {
    const int64_t group = groups == 1 ? 0 : tile.image;
    double of_group[kPriorLosses];
    for (int i = 0; i < kPriorLosses; ++i) of_group[i] = grads[i * groups + group];
    const double planes = double(images.channels) * (groups == 1 ? double(images.count) : 1);
    pull = prior_pull<A>(of_group, sums + group * kPriorSums, planes, images.height, images.width);
  }
  const int radius = window.radius, halo = 2 * radius > 1 ? 2 * radius : 1;
  load_pixels(x, images, tile, halo, pixels);
  blur_residual(pixels, halo, images, tile, radius, window, rows, residual);

  // The residual's adjoint, r - B^T r: down the columns of the tile and its rim, then along the rows of the tile.
  const int inner = kTile + 2 * radius;
  A* columns = rows;
  for (int i = threadIdx.x; i < kTile * inner; i += kThreads) {
    const int64_t y = tile.top + i / inner;
    A value = 0;
    for (int k = 0; k <= 2 * radius; ++k)
      value += blur_weight(y - radius + k, y, images.height, window) * residual[(i / inner + k) * inner + i % inner];
    columns[i] = value;
  }
  __syncthreads();
  const int row = threadIdx.x / kTile, column = threadIdx.x % kTile;
  const int64_t y = tile.top + row, z = tile.left + column;
  if (y >= images.height || z >= images.width) return;
  A blurred = 0;
  for (int k = 0; k <= 2 * radius; ++k)
    blurred += blur_weight(z - radius + k, z, images.width, window) * columns[row * inner + column + k];
  const int side = kTile + 2 * halo;
  const A* here = pixels + (row + halo) * side + column + halo;
  A value = pull.norm * here[0] + pull.blur * (residual[(row + radius) * inner + column + radius] - blurred);
  // A difference pulls its two pixels apart: seen from a pixel, one term for each of its neighbours.
  const bool up = y > 0, down = y + 1 < images.height, left = z > 0, right = z + 1 < images.width;
  const auto away_from = [&](bool there, int direction, int offset) {
    if (there) value += difference_pull(pull, direction, here[0] - here[offset]);
  };
  away_from(left, 0, -1);
  away_from(right, 0, 1);
  away_from(up, 1, -side);
  away_from(down, 1, side);
  away_from(up && right, 2, -side + 1);
  away_from(down && left, 2, side - 1);
  away_from(up && left, 3, -side - 1);
  away_from(down && right, 3, side + 1);
  narrow(value, out[tile.offset + y * images.row_stride + z * images.pixel_stride]);
}

}  // namespace

int64_t image_prior_blocks(const Images& images) {
  const int64_t across = (images.width + kTile - 1) / kTile, down = (images.height + kTile - 1) / kTile;
  return images.count * images.channels * down * across;
}

template <typename T>
void image_prior_forward(const T* x, const Images& images, int64_t groups, const BlurWindow<Accumulator<T>>& window,
                         double* partial, Accumulator<T>* losses, double* sums, cudaStream_t stream) {
  using A = Accumulator<T>;
  const int64_t blocks = image_prior_blocks(images);
  const double planes = double(images.channels) * double(images.count) / double(groups);
  launch(prior_sums_kernel<T, A>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream, x, images, window,
         partial);
  launch(prior_losses_kernel<A>, dim3(static_cast<unsigned>(groups)), dim3(kThreads), stream, partial, blocks / groups,
         planes, images.height, images.width, groups, losses, sums);
}

template <typename T>
void image_prior_backward(const Accumulator<T>* grads, const T* x, const double* sums, const Images& images,
                          int64_t groups, const BlurWindow<Accumulator<T>>& window, T* out, cudaStream_t stream) {
  launch(prior_gradient_kernel<T, Accumulator<T>>, dim3(static_cast<unsigned>(image_prior_blocks(images))),
         dim3(kThreads), stream, grads, x, sums, images, groups, window, out);
}

#define EXML_INSTANTIATE(T)                                                                                          \
  template void image_prior_forward<T>(const T*, const Images&, int64_t, const BlurWindow<Accumulator<T>>&, double*, \
                                       Accumulator<T>*, double*, cudaStream_t);                                      \
  template void image_prior_backward<T>(const Accumulator<T>*, const T*, const double*, const Images&, int64_t,      \
                                        const BlurWindow<Accumulator<T>>&, T*, cudaStream_t);
EXML_INSTANTIATE(float)
EXML_INSTANTIATE(double)
EXML_INSTANTIATE(BFloat16)
#undef EXML_INSTANTIATE

}  // namespace exml::cuda
