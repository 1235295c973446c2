#include "math/dirichlet.h"
#include "ops/cuda/dirichlet_targets_kernel.h"
#include "ops/cuda/reduce.h"

namespace exml::cuda {
namespace {

constexpr int kThreads = 256;

template <typename A>
__global__ void __launch_bounds__(kThreads)
    log_components_kernel(const A* __restrict__ similarity, const int64_t* __restrict__ labels,
                          const A* __restrict__ betas, int64_t rows, int64_t classes, PhiloxState state,
                          double* __restrict__ logs) {
  const uint64_t seed = state.seed_address ? static_cast<uint64_t>(*state.seed_address) : state.seed;
  const uint64_t offset = state.offset + (state.offset_address ? static_cast<uint64_t>(*state.offset_address) : 0);
  const int64_t size = rows * classes, stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < size; i += stride) {
    const int64_t n = i / classes, k = i % classes, label = labels[n];
    const bool known = label >= 0 && label < classes;
    const double concentration = known ? double(betas[n]) * double(similarity[label * classes + k]) : NAN;
    logs[i] = log_dirichlet_component(concentration, seed, offset, n, k, classes);
  }
}

// Block n: the softmax of row n. A NaN anywhere makes the row NaN.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(const double* __restrict__ logs, int64_t classes, A* __restrict__ out) {
  const double* row = logs + blockIdx.x * classes;
  double top = -INFINITY, total = 0;
  for (int64_t k = threadIdx.x; k < classes; k += kThreads) top = Largest<double>()(row[k], top);
  top = block_reduce<kThreads>(top, Largest<double>());
  for (int64_t k = threadIdx.x; k < classes; k += kThreads) total += std::exp(row[k] - top);
  total = block_reduce<kThreads>(total, Add<double>());
  for (int64_t k = threadIdx.x; k < classes; k += kThreads)
    out[blockIdx.x * classes + k] = A(std::exp(row[k] - top) / total);
}

}  // namespace

template <typename A>
void dirichlet_targets(const A* similarity, const int64_t* labels, const A* betas, int64_t rows, int64_t classes,
                       PhiloxState state, double* logs, A* out, cudaStream_t stream) {
  launch(log_components_kernel<A>, dim3(blocks_for(rows * classes, kThreads, 1 << 16)), dim3(kThreads), stream,
         similarity, labels, betas, rows, classes, state, logs);
  launch(normalise_kernel<A>, dim3(static_cast<unsigned>(rows)), dim3(kThreads), stream, logs, classes, out);
}

template void dirichlet_targets<float>(const float*, const int64_t*, const float*, int64_t, int64_t, PhiloxState,
                                       double*, float*, cudaStream_t);
template void dirichlet_targets<double>(const double*, const int64_t*, const double*, int64_t, int64_t, PhiloxState,
                                        double*, double*, cudaStream_t);

}  // namespace exml::cuda
