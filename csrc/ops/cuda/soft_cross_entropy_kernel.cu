#include "ops/cuda/reduce.h"
#include "ops/cuda/soft_cross_entropy_kernel.h"

namespace exml::cuda {
namespace {

constexpr int kThreads = 256;

// Combines a value over the kLanes threads of a row, for all of them: a warp by shuffles, a block by shared memory.
template <int kLanes, typename A, typename F>
__device__ A row_reduce(A value, F f) {
  if constexpr (kLanes == kWarp) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) value = f(value, __shfl_xor_sync(0xffffffffu, value, offset));
    return value;
  } else {
    return block_reduce<kLanes>(value, f);
  }
}

// kLanes threads a row: a warp (eight rows a block), or a block.
template <int kLanes>
__device__ int64_t my_row() {
  return int64_t(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
}

template <int kLanes, typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    row_losses_kernel(const T* __restrict__ logits, Target<A> target, int64_t rows, int64_t classes, A scale,
                      A* __restrict__ losses, A* __restrict__ lses) {
  const int64_t row = my_row<kLanes>();
  const int lane = threadIdx.x % kLanes;
  if (row >= rows) return;  // all threads of the row
  const T* z = logits + row * classes;
  A top = -INFINITY, total = 0, loss = 0;
  for (int64_t k = lane; k < classes; k += kLanes) top = Largest<A>()(A(widen(z[k])) * scale, top);
  top = row_reduce<kLanes>(top, Largest<A>());
  for (int64_t k = lane; k < classes; k += kLanes) total += std::exp(A(widen(z[k])) * scale - top);
  const A lse = top + std::log(row_reduce<kLanes>(total, Add<A>()));
  if (target.soft) {
    for (int64_t k = lane; k < classes; k += kLanes)
      loss += target.soft[row * classes + k] * (lse - A(widen(z[k])) * scale);
    loss = row_reduce<kLanes>(loss, Add<A>());
  } else {
    const int64_t k = target.indices[row];
    loss = k >= 0 && k < classes ? lse - A(widen(z[k])) * scale : A(NAN);
  }
  if (lane == 0) {
    losses[row] = loss;
    lses[row] = lse;
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads)
    total_kernel(const A* __restrict__ losses, int64_t rows, A share, A* __restrict__ total) {
  double value = 0;
  for (int64_t i = threadIdx.x; i < rows; i += kThreads) value += losses[i];
  value = block_reduce<kThreads>(value, Add<double>());
  if (threadIdx.x == 0) *total = A(value * double(share));
}

template <int kLanes, typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    row_gradient_kernel(const A* __restrict__ grad, bool per_row, A share, const T* __restrict__ logits,
                        Target<A> target, const A* __restrict__ lses, int64_t rows, int64_t classes, A scale,
                        T* __restrict__ out) {
  const int64_t row = my_row<kLanes>();
  const int lane = threadIdx.x % kLanes;
  if (row >= rows) return;
  const T* z = logits + row * classes;
  const A pull = share * grad[per_row ? row : 0], lse = lses[row];
  A mass = 1;
  int64_t index = -1;
  if (target.soft) {
    mass = 0;
    for (int64_t k = lane; k < classes; k += kLanes) mass += target.soft[row * classes + k];
    mass = row_reduce<kLanes>(mass, Add<A>());
  } else {
    index = target.indices[row];
    if (index < 0 || index >= classes) mass = A(NAN);
  }
  for (int64_t k = lane; k < classes; k += kLanes) {
    const A wanted = target.soft ? target.soft[row * classes + k] : A(k == index);
    narrow(pull * (mass * std::exp(A(widen(z[k])) * scale - lse) - wanted), out[row * classes + k]);
  }
}

// A warp a row up to this many classes, a block beyond.
constexpr int64_t kWarpClasses = 1024;

}  // namespace

template <typename T>
void soft_cross_entropy_forward(const T* logits, Target<Accumulator<T>> target, int64_t rows, int64_t classes,
                                Accumulator<T> scale, Accumulator<T> share, Accumulator<T>* losses, Accumulator<T>* lse,
                                Accumulator<T>* total, cudaStream_t stream) {
  using A = Accumulator<T>;
  if (classes <= kWarpClasses)
    launch(row_losses_kernel<kWarp, T, A>, dim3(blocks_for(rows, kThreads / kWarp)), dim3(kThreads), stream, logits,
           target, rows, classes, scale, losses, lse);
  else
    launch(row_losses_kernel<kThreads, T, A>, dim3(blocks_for(rows, 1)), dim3(kThreads), stream, logits, target, rows,
           classes, scale, losses, lse);
  if (total) launch(total_kernel<A>, dim3(1), dim3(kThreads), stream, losses, rows, share, total);
}

template <typename T>
void soft_cross_entropy_backward(const Accumulator<T>* grad, bool per_row, Accumulator<T> share, const T* logits,
                                 Target<Accumulator<T>> target, const Accumulator<T>* lse, int64_t rows,
                                 int64_t classes, Accumulator<T> scale, T* out, cudaStream_t stream) {
  using A = Accumulator<T>;
  if (classes <= kWarpClasses)
    launch(row_gradient_kernel<kWarp, T, A>, dim3(blocks_for(rows, kThreads / kWarp)), dim3(kThreads), stream, grad,
           per_row, share, logits, target, lse, rows, classes, scale, out);
  else
    launch(row_gradient_kernel<kThreads, T, A>, dim3(blocks_for(rows, 1)), dim3(kThreads), stream, grad, per_row, share,
           logits, target, lse, rows, classes, scale, out);
}

#define EXML_INSTANTIATE(T)                                                                                       \
  template void soft_cross_entropy_forward<T>(const T*, Target<Accumulator<T>>, int64_t, int64_t, Accumulator<T>, \
                                              Accumulator<T>, Accumulator<T>*, Accumulator<T>*, Accumulator<T>*,  \
                                              cudaStream_t);                                                      \
  template void soft_cross_entropy_backward<T>(const Accumulator<T>*, bool, Accumulator<T>, const T*,             \
                                               Target<Accumulator<T>>, const Accumulator<T>*, int64_t, int64_t,   \
                                               Accumulator<T>, T*, cudaStream_t);
EXML_INSTANTIATE(float)
EXML_INSTANTIATE(double)
EXML_INSTANTIATE(BFloat16)
#undef EXML_INSTANTIATE

}  // namespace exml::cuda
