#include "ops/dirichlet_targets.h"

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include <mutex>

#include "ops/cuda/context.h"
#include "ops/cuda/dirichlet_targets_kernel.h"

namespace exml {

using at::Tensor;

namespace {

// Takes the generator's next stretch of random words.
cuda::RandomState next_random(const std::optional<at::Generator>& generator, c10::DeviceIndex device) {
  auto* source =
      at::get_generator_or_default<at::CUDAGeneratorImpl>(generator, at::cuda::detail::getDefaultCUDAGenerator(device));
  std::lock_guard<std::mutex> lock(source->mutex_);
  const at::PhiloxCudaState state = source->philox_cuda_state(cuda::dirichlet_targets_words());
  if (state.captured_) return {0, state.offset_intragraph_, state.seed_.ptr, state.offset_.ptr};
  return {state.seed_.val, state.offset_.val, nullptr, nullptr};
}

}  // namespace

Tensor dirichlet_targets_cuda(const Tensor& similarity, const Tensor& classes, const Tensor& betas,
                              const std::optional<at::Generator>& generator) {
  const cuda::Context context(similarity);
  const int64_t rows = classes.size(0), count = similarity.size(1);
  Tensor out = context.empty({rows, count}, similarity.scalar_type());
  const Tensor scratch = context.empty({rows, count}, at::kDouble);
  const auto random = next_random(generator, similarity.device().index());
  const auto draw = [&]<typename A>(const A* similarities) {
    cuda::dirichlet_targets(similarities, classes.const_data_ptr<int64_t>(), betas.const_data_ptr<A>(), rows, count,
                            random, scratch.mutable_data_ptr<double>(), out.mutable_data_ptr<A>(), context.stream());
  };
  if (similarity.scalar_type() == at::kDouble)
    draw(similarity.const_data_ptr<double>());
  else
    draw(similarity.const_data_ptr<float>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

bool is_capturing_cuda() { return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None; }

}  // namespace exml
