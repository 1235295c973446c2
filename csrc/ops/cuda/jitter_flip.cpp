#include "ops/jitter_flip.h"

#include "ops/backend.h"
#include "ops/cuda/context.h"
#include "ops/cuda/jitter_flip_kernel.h"

namespace exml {
namespace {

Tensor jitter_flip(const JitterFlip& a) {
  if (a.x.numel() == 0) return a.out;
  const cuda::Context context(a.x);
  const bool channels_last = !a.out.is_contiguous();
  const auto sizes = a.x.sizes(), strides = a.x.strides();
  dispatch_pixels(a.x, [&](auto* x) {
    using T = PixelOf<decltype(x)>;
    dispatch_pixels(a.out, [&](auto* typed) {
      using U = PixelOf<decltype(typed)>;
      cuda::jitter_flip(cuda::JitterFlipArguments<T, U>{x,
                                                        {strides[0], strides[1], strides[2], strides[3]},
                                                        static_cast<U*>(a.out.mutable_data_ptr()),
                                                        channels_last,
                                                        sizes[0],
                                                        sizes[1],
                                                        sizes[2],
                                                        sizes[3],
                                                        a.shift.const_data_ptr<int64_t>(),
                                                        a.flip.const_data_ptr<bool>(),
                                                        a.shift_step(),
                                                        a.flip_step(),
                                                        a.wrap,
                                                        a.adjoint},
                        context.stream());
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return a.out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CUDA, m) { m.impl("_jitter_flip", checked<&jitter_flip_arguments, &jitter_flip>); }

}  // namespace
}  // namespace exml
