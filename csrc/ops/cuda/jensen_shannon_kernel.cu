#include "math/jensen_shannon.h"
#include "ops/cuda/jensen_shannon_kernel.h"
#include "ops/cuda/softmax.h"

namespace exml::cuda {
namespace {

constexpr int kThreads = kRowThreads;

template <typename T, int kGroup>
__global__ void __launch_bounds__(kThreads, 1)
    divergence_kernel(const T* __restrict__ teacher, const T* __restrict__ student, int64_t rows, int64_t classes,
                      Accumulator<T> scale, Accumulator<T>* __restrict__ losses,
                      Accumulator<T>* __restrict__ teacher_lses, Accumulator<T>* __restrict__ student_lses) {
  using A = Accumulator<T>;
  __shared__ A shared[kThreads / 32];
  const int64_t n = this_row<kGroup>(),
                count = n < rows ? classes : 0;  // a group without a row takes part in the barriers
  const int lane = threadIdx.x % kGroup;
  const T *p_row = teacher + n * classes, *q_row = student + n * classes;
  const A p_top = row_top<kGroup>(p_row, count, shared), q_top = row_top<kGroup>(q_row, count, shared);
  const A p_lse = row_lse<kGroup>(p_row, count, p_top, scale, shared),
          q_lse = row_lse<kGroup>(q_row, count, q_top, scale, shared);
  const A shift = q_lse / 2 - p_lse / 2;
  A js = 0;
#pragma unroll 2
  for (int64_t k = lane; k < count; k += kGroup) {
    const A z = half_below_top(widen(p_row[k]), p_top, scale), y = half_below_top(widen(q_row[k]), q_top, scale);
    js += divergence(std::exp(z + z - p_lse), std::exp(y + y - q_lse), half_log_odds(z, y, shift));
  }
  js = group_reduce<kGroup>(js, Sum{}, shared);
  if (n >= rows || lane > 0) return;
  losses[n] = A(1) - js;
  // A row whose divergence is NaN must have a gradient of NaN too.
  teacher_lses[n] = js == js ? p_lse : js;
  student_lses[n] = js == js ? q_lse : js;
}

// out = pull * p * (mean - ratio), ratio being log(p / m) / 2 and mean its expectation under p: minus the divergence's
// gradient in logits * scale.
template <typename T, int kGroup>
__global__ void __launch_bounds__(kThreads, 1)
    divergence_gradient_kernel(const Accumulator<T>* __restrict__ grad, bool grad_per_row, const T* __restrict__ logits,
                               const T* __restrict__ other, const Accumulator<T>* __restrict__ lses,
                               const Accumulator<T>* __restrict__ other_lses, int64_t rows, int64_t classes,
                               Accumulator<T> scale, Accumulator<T> factor, T* __restrict__ out) {
  using A = Accumulator<T>;
  __shared__ A shared[kThreads / 32];
  const int64_t n = this_row<kGroup>(), count = n < rows ? classes : 0;
  const int lane = threadIdx.x % kGroup;
  const T *row = logits + n * classes, *other_row = other + n * classes;
  const A top = row_top<kGroup>(row, count, shared), other_top = row_top<kGroup>(other_row, count, shared);
  const A lse = n < rows ? lses[n] : A(0), shift = n < rows ? other_lses[n] / 2 - lse / 2 : A(0);
  const auto p_and_ratio = [&](int64_t k, A& p, A& ratio) {
    const A z = half_below_top(widen(row[k]), top, scale), y = half_below_top(widen(other_row[k]), other_top, scale);
    A of_q;
    p = std::exp(z + z - lse);
    half_log_ratios(half_log_odds(z, y, shift), ratio, of_q);
  };
  A mean = 0, p, ratio;
#pragma unroll 2
  for (int64_t k = lane; k < count; k += kGroup) {
    p_and_ratio(k, p, ratio);
    mean += p * ratio;
  }
  mean = group_reduce<kGroup>(mean, Sum{}, shared);
  if (n >= rows) return;
  const A pull = factor * grad[grad_per_row ? n : 0];
#pragma unroll 2
  for (int64_t k = lane; k < classes; k += kGroup) {
    p_and_ratio(k, p, ratio);
    narrow(pull * p * (mean - ratio), out[n * classes + k]);
  }
}

}  // namespace

template <typename T>
void jensen_shannon_forward(const T* teacher, const T* student, int64_t rows, int64_t classes, Accumulator<T> scale,
                            Accumulator<T>* losses, Accumulator<T>* teacher_lse, Accumulator<T>* student_lse,
                            cudaStream_t stream) {
  if (classes <= kWarpClasses)
    launch(divergence_kernel<T, 32>, row_blocks<32>(rows), kThreads, stream, teacher, student, rows, classes, scale,
           losses, teacher_lse, student_lse);
  else
    launch(divergence_kernel<T, kThreads>, row_blocks<kThreads>(rows), kThreads, stream, teacher, student, rows,
           classes, scale, losses, teacher_lse, student_lse);
}

template <typename T>
void jensen_shannon_backward(const Accumulator<T>* grad, bool grad_per_row, const T* logits, const T* other,
                             const Accumulator<T>* lse, const Accumulator<T>* other_lse, int64_t rows, int64_t classes,
                             Accumulator<T> scale, Accumulator<T> factor, T* out, cudaStream_t stream) {
  if (classes <= kWarpClasses)
    launch(divergence_gradient_kernel<T, 32>, row_blocks<32>(rows), kThreads, stream, grad, grad_per_row, logits, other,
           lse, other_lse, rows, classes, scale, factor, out);
  else
    launch(divergence_gradient_kernel<T, kThreads>, row_blocks<kThreads>(rows), kThreads, stream, grad, grad_per_row,
           logits, other, lse, other_lse, rows, classes, scale, factor, out);
}

#define EXML_INSTANTIATE(T)                                                                                          \
  template void jensen_shannon_forward(const T*, const T*, int64_t, int64_t, Accumulator<T>, Accumulator<T>*,        \
                                       Accumulator<T>*, Accumulator<T>*, cudaStream_t);                              \
  template void jensen_shannon_backward(const Accumulator<T>*, bool, const T*, const T*, const Accumulator<T>*,      \
                                        const Accumulator<T>*, int64_t, int64_t, Accumulator<T>, Accumulator<T>, T*, \
                                        cudaStream_t);
EXML_INSTANTIATE(float)
EXML_INSTANTIATE(double)
EXML_INSTANTIATE(BFloat16)
#undef EXML_INSTANTIATE

}  // namespace exml::cuda
