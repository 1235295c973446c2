#include "ops/dirichlet_targets.h"

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include <mutex>

#include "math/gamma.h"
#include "ops/cuda/binding.h"
#include "ops/cuda/dirichlet_targets_kernel.h"

namespace exml {
namespace {

using at::Tensor;

cuda::PhiloxState philox_state(const std::optional<at::Generator>& generator, c10::DeviceIndex device) {
  auto* source =
      at::get_generator_or_default<at::CUDAGeneratorImpl>(generator, at::cuda::detail::getDefaultCUDAGenerator(device));
  std::lock_guard<std::mutex> lock(source->mutex_);
  const at::PhiloxCudaState state = source->philox_cuda_state(kGammaBlocks);
  if (state.captured_) return {state.seed_.ptr, state.offset_.ptr, 0, state.offset_intragraph_};
  return {nullptr, nullptr, state.seed_.val, state.offset_.val};
}

}  // namespace

bool is_capturing_cuda() { return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None; }

Tensor dirichlet_targets_cuda(const Tensor& similarity, const Tensor& classes, const Tensor& betas,
                              const std::optional<at::Generator>& generator) {
  const c10::cuda::CUDAGuard guard(similarity.device());
  const int64_t rows = classes.size(0), count = similarity.size(1);
  const auto state = philox_state(generator, similarity.get_device());
  Tensor out = at::empty({rows, count}, similarity.options());
  Tensor logs = at::empty({rows, count}, similarity.options().dtype(at::kDouble));
  const auto draw = [&](auto zero) {
    using A = decltype(zero);
    cuda::dirichlet_targets(similarity.const_data_ptr<A>(), classes.const_data_ptr<int64_t>(),
                            betas.const_data_ptr<A>(), rows, count, state, logs.mutable_data_ptr<double>(),
                            out.mutable_data_ptr<A>(), current_stream(similarity));
  };
  if (similarity.scalar_type() == at::kDouble)
    draw(double());
  else
    draw(float());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace exml
