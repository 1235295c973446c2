#include "math/dirichlet.h"
#include "ops/cuda/dirichlet_targets_kernel.h"
#include "ops/cuda/reduce.h"

namespace exml::cuda {
namespace {

constexpr int kThreads = 256;
// Rows of more classes get a block each, shorter ones a warp.
constexpr int64_t kWarpClasses = 1024;

// A Philox block has four words.
constexpr int kWords = 4;

template <typename A>
__global__ void __launch_bounds__(kThreads)
    log_gamma_kernel(const A* __restrict__ similarity, const int64_t* __restrict__ labels, const A* __restrict__ betas,
                     int64_t rows, int64_t classes, RandomState random, double* __restrict__ out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows * classes) return;
  const int64_t n = i / classes, k = i - n * classes, label = labels[n];
  const uint64_t seed = random.device_seed ? static_cast<uint64_t>(*random.device_seed) : random.seed;
  const uint64_t words = random.offset + (random.device_offset ? static_cast<uint64_t>(*random.device_offset) : 0);
  const double concentration =
      label >= 0 && label < classes ? double(betas[n]) * double(similarity[label * classes + k]) : NAN;
  out[i] = log_dirichlet_component(concentration, seed, words / kWords, n, k, classes);
}

template <typename A, int kGroup>
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(const double* __restrict__ logs, int64_t rows, int64_t classes, A* __restrict__ out) {
  __shared__ double shared[kThreads / 32];
  const int64_t n = int64_t(blockIdx.x) * (kThreads / kGroup) + threadIdx.x / kGroup, count = n < rows ? classes : 0;
  const int lane = threadIdx.x % kGroup;
  const double* row = logs + n * classes;
  double top = -INFINITY, total = 0;
  for (int64_t k = lane; k < count; k += kGroup) top = Largest{}(top, row[k]);
  top = group_reduce<kGroup>(top, Largest{}, shared);
  for (int64_t k = lane; k < count; k += kGroup) total += std::exp(row[k] - top);
  total = group_reduce<kGroup>(total, Sum{}, shared);
  for (int64_t k = lane; k < count; k += kGroup) out[n * classes + k] = static_cast<A>(std::exp(row[k] - top) / total);
}

template <typename A, int kGroup>
void normalise(const double* logs, int64_t rows, int64_t classes, A* out, cudaStream_t stream) {
  launch(normalise_kernel<A, kGroup>, static_cast<unsigned>(divide_up(rows, kThreads / kGroup)), kThreads, stream, logs,
         rows, classes, out);
}

}  // namespace

uint64_t dirichlet_targets_words() { return kWords * kGammaBlocks; }

template <typename A>
void dirichlet_targets(const A* similarity, const int64_t* labels, const A* betas, int64_t rows, int64_t classes,
                       const RandomState& random, double* scratch, A* out, cudaStream_t stream) {
  launch(log_gamma_kernel<A>, static_cast<unsigned>(divide_up(rows * classes, kThreads)), kThreads, stream, similarity,
         labels, betas, rows, classes, random, scratch);
  if (classes <= kWarpClasses)
    normalise<A, 32>(scratch, rows, classes, out, stream);
  else
    normalise<A, kThreads>(scratch, rows, classes, out, stream);
}

template void dirichlet_targets(const float*, const int64_t*, const float*, int64_t, int64_t, const RandomState&,
                                double*, float*, cudaStream_t);
template void dirichlet_targets(const double*, const int64_t*, const double*, int64_t, int64_t, const RandomState&,
                                double*, double*, cudaStream_t);

}  // namespace exml::cuda
