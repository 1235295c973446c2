#include "ops/cuda/soft_cross_entropy_kernel.h"
#include "ops/cuda/softmax.h"

namespace exml::cuda {
namespace {

constexpr int kThreads = kRowThreads;

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
  const A top = row_top<kGroup>(row, count, shared), lse = row_lse<kGroup>(row, count, top, scale, shared);
  A loss = 0;
  if (target.probabilities) {
    const A* probabilities = target.probabilities + n * classes;
#pragma unroll 4
    for (int64_t k = lane; k < count; k += kGroup) loss += probabilities[k] * (lse - (widen(row[k]) - top) * scale);
    loss = group_reduce<kGroup>(loss, Sum{}, shared);
  }
  if (n >= rows || lane > 0) return;
  if (!target.probabilities) {
    const int64_t k = target.indices[n];
    loss = k >= 0 && k < classes ? lse - (widen(row[k]) - top) * scale : A(NAN);
  }
  losses[n] = loss;
  lses[n] = lse;
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
  const T* row = logits + n * classes;
  const A top = row_top<kGroup>(row, count, shared);
  if (n >= rows) return;
  A pull = factor * grad[grad_per_row ? n : 0];
  const A lse = lses[n];
  const int64_t index = target.probabilities ? -1 : target.indices[n];
  if (!target.probabilities && (index < 0 || index >= classes)) pull = NAN;
#pragma unroll 4
  for (int64_t k = lane; k < classes; k += kGroup) {
    const A wanted = target.probabilities ? probabilities[k] : A(k == index);
    narrow(pull * (mass * std::exp((widen(row[k]) - top) * scale - lse) - wanted), out[n * classes + k]);
  }
}

}  // namespace

template <typename T>
void soft_cross_entropy_forward(const T* logits, const Target<Accumulator<T>>& target, int64_t rows, int64_t classes,
                                Accumulator<T> scale, Accumulator<T>* losses, Accumulator<T>* lse,
                                cudaStream_t stream) {
  if (classes <= kWarpClasses)
    launch(losses_kernel<T, 32>, row_blocks<32>(rows), kThreads, stream, logits, target, rows, classes, scale, losses,
           lse);
  else
    launch(losses_kernel<T, kThreads>, row_blocks<kThreads>(rows), kThreads, stream, logits, target, rows, classes,
           scale, losses, lse);
}

template <typename T>
void soft_cross_entropy_backward(const Accumulator<T>* grad, bool grad_per_row, const T* logits,
                                 const Target<Accumulator<T>>& target, const Accumulator<T>* lse, int64_t rows,
                                 int64_t classes, Accumulator<T> scale, Accumulator<T> factor, T* out,
                                 cudaStream_t stream) {
  if (classes <= kWarpClasses)
    launch(logits_gradient_kernel<T, 32>, row_blocks<32>(rows), kThreads, stream, grad, grad_per_row, logits, target,
           lse, rows, classes, scale, factor, out);
  else
    launch(logits_gradient_kernel<T, kThreads>, row_blocks<kThreads>(rows), kThreads, stream, grad, grad_per_row,
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

}  // namespace exml::cuda
