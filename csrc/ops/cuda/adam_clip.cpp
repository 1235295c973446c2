#include "ops/adam_clip.h"

#include "ops/backend.h"
#include "ops/cuda/adam_clip_kernel.h"
#include "ops/cuda/context.h"

namespace exml {
namespace {

void adam_clip(const AdamClip& a) {
  if (a.x.numel() == 0) return;
  const cuda::Context context(a.x);
  dispatch_pixels(a.grad, [&](auto* grad) {
    using G = PixelOf<decltype(grad)>;
    using T = Accumulator<G>;
    const bool whole = a.step.scalar_type() == ScalarType::Long;
    cuda::adam_clip(cuda::AdamClipArguments<T, G>{a.x.mutable_data_ptr<T>(), a.exp_avg.mutable_data_ptr<T>(),
                                                  a.exp_avg_sq.mutable_data_ptr<T>(), grad, a.layout.batch,
                                                  a.layout.channels, a.layout.plane, a.layout.channels_last,
                                                  a.grad_transposed, whole ? a.step.const_data_ptr<int64_t>() : nullptr,
                                                  whole ? nullptr : a.step.const_data_ptr<float>(),
                                                  a.lr.const_data_ptr<T>(), values_or_null<T>(a.low),
                                                  values_or_null<T>(a.high), values_or_null<bool>(a.active), a.rates},
                    context.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

STABLE_TORCH_LIBRARY_IMPL(exml, CUDA, m) { m.impl("_adam_clip_", checked<&adam_clip_arguments, &adam_clip>); }

}  // namespace
}  // namespace exml
