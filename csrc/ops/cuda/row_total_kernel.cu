#include "ops/cuda/reduce.h"
#include "ops/cuda/row_total_kernel.h"

namespace exml::cuda {
namespace {

constexpr int kReduceThreads = 512;

template <typename A>
__global__ void __launch_bounds__(kReduceThreads)
    row_total_kernel(const A* __restrict__ losses, int64_t rows, double factor, A* __restrict__ total) {
  __shared__ double shared[kReduceThreads / 32];
  double sum = 0;
#pragma unroll 4
  for (int64_t n = threadIdx.x; n < rows; n += kReduceThreads) sum += double(losses[n]);
  sum = block_reduce<kReduceThreads / 32>(sum, Sum{}, shared);
  if (threadIdx.x == 0) *total = static_cast<A>(sum * factor);
}

}  // namespace

template <typename A>
void row_total(const A* losses, int64_t rows, double factor, A* total, cudaStream_t stream) {
  launch(row_total_kernel<A>, 1, kReduceThreads, stream, losses, rows, factor, total);
}

template void row_total(const float*, int64_t, double, float*, cudaStream_t);
template void row_total(const double*, int64_t, double, double*, cudaStream_t);

}  // namespace exml::cuda
