#include "ops/dirichlet_targets.h"

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <torch/library.h>

#include <mutex>

#include "ops/backend.h"
#include "ops/cuda/context.h"
#include "ops/cuda/dirichlet_targets_kernel.h"

namespace exml {
namespace {

using at::Tensor;

// Takes the generator's next stretch of random words.
cuda::RandomState next_random(const std::optional<at::Generator>& generator, c10::DeviceIndex device) {
  auto* source =
      at::get_generator_or_default<at::CUDAGeneratorImpl>(generator, at::cuda::detail::getDefaultCUDAGenerator(device));
  std::lock_guard<std::mutex> lock(source->mutex_);
  const at::PhiloxCudaState state = source->philox_cuda_state(cuda::dirichlet_targets_words());
  if (state.captured_) return {0, state.offset_intragraph_, state.seed_.ptr, state.offset_.ptr};
  return {state.seed_.val, state.offset_.val, nullptr, nullptr};
}

// While the stream records a CUDA graph, values on the device cannot be read.
bool is_capturing() { return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None; }

Tensor dirichlet_targets(const DirichletTargets& arguments) {
  if (!is_capturing()) check_dirichlet_values(arguments);
  const auto& [similarity, classes, betas, generator] = arguments;
  const cuda::Context context(similarity);
  const int64_t rows = classes.size(0), count = similarity.size(1);
  Tensor out = context.empty({rows, count}, similarity.scalar_type());
  const Tensor scratch = context.empty({rows, count}, at::kDouble);
  const auto random = next_random(generator, similarity.device().index());
  dispatch_statistics(similarity, [&](auto* similarities) {
    using A = PixelOf<decltype(similarities)>;
    cuda::dirichlet_targets(similarities, classes.const_data_ptr<int64_t>(), betas.const_data_ptr<A>(), rows, count,
                            random, scratch.mutable_data_ptr<double>(), out.mutable_data_ptr<A>(), context.stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

TORCH_LIBRARY_IMPL(exml, CUDA, m) {
  m.impl("dirichlet_targets", checked<&dirichlet_targets_arguments, &dirichlet_targets>);
}

}  // namespace
}  // namespace exml
