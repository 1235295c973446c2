#include "ops/cuda/reduce.h"
#include "ops/cuda/soft_cross_entropy_kernel.h"

namespace exml::cuda {
namespace {

constexpr int kThreads = 256, kReduceThreads = 512;
// Rows of more classes get a block each, shorter ones a warp.
constexpr int64_t kWarpClasses = 1024;

// The row that this group of threads handles; the last block may have groups without one.
template <int kGroup>
__device__ __forceinline__ int64_t this_row() {
  return int64_t(blockIdx.x) * (kThreads / kGroup) + threadIdx.x / kGroup;
}

template <typename T, int kGroup>
__global__ void __launch_bounds__(kThreads, 1)
    losses_kernel(const T* __restrict__ logits, Target<Accumulator<T>> target, int64_t rows, int64_t classes,
                  Accumulator<T> scale, Accumulator<T>* __restrict__ losses, Accumulator<T>* __restrict__ lses) {
  using A = Accumulator<T>;
  __shared__ A shared[kThreads / 32];
  const int64_t n = this_row<kGroup>(),
                count = n < rows ? classes : 0;  // a group without a row keeps the others company
  const int lane = threadIdx.x % kGroup;
  const T* row = logits + n * classes;
  A top = -INFINITY;
#pragma unroll 4
  for (int64_t k = lane; k < count; k += kGroup) top = Largest{}(top, widen(row[k]) * scale);
  top = group_reduce<kGroup>(top, Largest{}, shared);
  A total = 0;
#pragma unroll 4
  for (int64_t k = lane; k < count; k += kGroup) total += std::exp(widen(row[k]) * scale - top);
  const A lse = top + std::log(group_reduce<kGroup>(total, Sum{}, shared));
  A loss = 0;
  if (target.probabilities) {
    const A* probabilities = target.probabilities + n * classes;
#pragma unroll 4
    for (int64_t k = lane; k < count; k += kGroup) loss += probabilities[k] * (lse - widen(row[k]) * scale);
    loss = group_reduce<kGroup>(loss, Sum{}, shared);
  }
  if (n >= rows || lane > 0) return;
  if (!target.probabilities) {
    const int64_t k = target.indices[n];
    loss = k >= 0 && k < classes ? lse - widen(row[k]) * scale : A(NAN);
  }
  losses[n] = loss;
  lses[n] = lse;
}

template <typename A>
__global__ void __launch_bounds__(kReduceThreads)
    total_kernel(const A* __restrict__ losses, int64_t rows, double factor, A* __restrict__ total) {
  __shared__ double shared[kReduceThreads / 32];
  double sum = 0;
#pragma unroll 4
  for (int64_t n = threadIdx.x; n < rows; n += kReduceThreads) sum += double(losses[n]);
  sum = block_reduce<kReduceThreads / 32>(sum, Sum{}, shared);
  if (threadIdx.x == 0) *total = static_cast<A>(sum * factor);
}

// out = pull * (mass * softmax - target), mass being the sum of the target's probabilities.
template <typename T, int kGroup>
__global__ void __launch_bounds__(kThreads, 1)
    logits_gradient_kernel(const Accumulator<T>* __restrict__ grad, bool grad_per_row, const T* __restrict__ logits,
                           Target<Accumulator<T>> target, const Accumulator<T>* __restrict__ lses, int64_t rows,
                           int64_t classes, Accumulator<T> scale, Accumulator<T> factor, T* __restrict__ out) {
  using A = Accumulator<T>;
  __shared__ A shared[kThreads / 32];
  const int64_t n = this_row<kGroup>(), count = n < rows ? classes : 0;
  const int lane = threadIdx.x % kGroup;
  const A* probabilities = target.probabilities + (target.probabilities ? n * classes : 0);
  A mass = 1;
  if (target.probabilities) {
    mass = 0;
#pragma unroll 4
    for (int64_t k = lane; k < count; k += kGroup) mass += probabilities[k];
    mass = group_reduce<kGroup>(mass, Sum{}, shared);
  }
  if (n >= rows) return;
  A pull = factor * grad[grad_per_row ? n : 0];
  const A lse = lses[n];
  const int64_t index = target.probabilities ? -1 : target.indices[n];
  if (!target.probabilities && (index < 0 || index >= classes)) pull = NAN;
  const T* row = logits + n * classes;
#pragma unroll 4
  for (int64_t k = lane; k < classes; k += kGroup) {
    const A wanted = target.probabilities ? probabilities[k] : A(k == index);
    narrow(pull * (mass * std::exp(widen(row[k]) * scale - lse) - wanted), out[n * classes + k]);
  }
}

template <int kGroup>
unsigned blocks_for(int64_t rows) {
  return static_cast<unsigned>(divide_up(rows, kThreads / kGroup));
}

}  // namespace

template <typename T>
void soft_cross_entropy_forward(const T* logits, const Target<Accumulator<T>>& target, int64_t rows, int64_t classes,
                                Accumulator<T> scale, Accumulator<T>* losses, Accumulator<T>* lse,
                                cudaStream_t stream) {
  if (classes <= kWarpClasses)
    launch(losses_kernel<T, 32>, blocks_for<32>(rows), kThreads, stream, logits, target, rows, classes, scale, losses,
           lse);
  else
    launch(losses_kernel<T, kThreads>, blocks_for<kThreads>(rows), kThreads, stream, logits, target, rows, classes,
           scale, losses, lse);
}

template <typename A>
void soft_cross_entropy_reduce(const A* losses, int64_t rows, double factor, A* total, cudaStream_t stream) {
  launch(total_kernel<A>, 1, kReduceThreads, stream, losses, rows, factor, total);
}

template <typename T>
void soft_cross_entropy_backward(const Accumulator<T>* grad, bool grad_per_row, const T* logits,
                                 const Target<Accumulator<T>>& target, const Accumulator<T>* lse, int64_t rows,
                                 int64_t classes, Accumulator<T> scale, Accumulator<T> factor, T* out,
                                 cudaStream_t stream) {
  if (classes <= kWarpClasses)
    launch(logits_gradient_kernel<T, 32>, blocks_for<32>(rows), kThreads, stream, grad, grad_per_row, logits, target,
           lse, rows, classes, scale, factor, out);
  else
    launch(logits_gradient_kernel<T, kThreads>, blocks_for<kThreads>(rows), kThreads, stream, grad, grad_per_row,
           logits, target, lse, rows, classes, scale, factor, out);
}

#define EXML_INSTANTIATE(T)                                                                                           \
  template void soft_cross_entropy_forward(const T*, const Target<Accumulator<T>>&, int64_t, int64_t, Accumulator<T>, \
                                           Accumulator<T>*, Accumulator<T>*, cudaStream_t);                           \
  template void soft_cross_entropy_backward(const Accumulator<T>*, bool, const T*, const Target<Accumulator<T>>&,     \
                                            const Accumulator<T>*, int64_t, int64_t, Accumulator<T>, Accumulator<T>,  \
                                            T*, cudaStream_t);
EXML_INSTANTIATE(float)
EXML_INSTANTIATE(double)
EXML_INSTANTIATE(BFloat16)
#undef EXML_INSTANTIATE
template void soft_cross_entropy_reduce(const float*, int64_t, double, float*, cudaStream_t);
template void soft_cross_entropy_reduce(const double*, int64_t, double, double*, cudaStream_t);

}  // namespace exml::cuda
