#include <algorithm>

#include "math/jitter.h"
#include "ops/backend.h"
#include "ops/dispatch.h"
#include "ops/jitter_flip.h"

namespace exml {

// Images of a batch, how far they move, and where they lie: strides of (N, C, H, W).
struct ShiftedImages {
  int64_t channels, height, width, from[4], to[4];
  const int64_t* shift;  // down and right, `shift_step` apart for the images
  const bool* flip;      // `flip_step` apart
  int64_t shift_step, flip_step;
  bool wrap, adjoint;
};

}  // namespace exml

#define EXML_SIMD_SOURCE "ops/cpu/jitter_flip_simd.h"
#include "ops/cpu/for_each_capability.h"

namespace exml {
namespace {

// Values that one task of a parallel loop handles.
constexpr int64_t kTask = 16384;

template <typename T, typename U>
void jitter(const JitterFlip& arguments, const T* x, U* out) {
  const auto sizes = arguments.x.sizes(), from = arguments.x.strides(), to = arguments.out.strides();
  const ShiftedImages images{sizes[1],
                             sizes[2],
                             sizes[3],
                             {from[0], from[1], from[2], from[3]},
                             {to[0], to[1], to[2], to[3]},
                             arguments.shift.const_data_ptr<int64_t>(),
                             arguments.flip.const_data_ptr<bool>(),
                             arguments.shift_step(),
                             arguments.flip_step(),
                             arguments.wrap,
                             arguments.adjoint};
  const int64_t rows = std::max<int64_t>(1, kTask / (images.channels * images.width));
  parallel_for(0, sizes[0] * images.height, rows,
               [&](int64_t begin, int64_t end) { EXML_CPU_CALL(shift_rows, images, x, out, begin, end); });
}

Tensor jitter_flip(const JitterFlip& arguments) {
  if (arguments.x.numel() == 0) return arguments.out;
  dispatch_pixels(arguments.x, [&](auto* x) {
    dispatch_pixels(arguments.out, [&](auto* typed) {
      using U = PixelOf<decltype(typed)>;
      jitter(arguments, x, static_cast<U*>(arguments.out.mutable_data_ptr()));
    });
  });
  return arguments.out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CPU, m) { m.impl("_jitter_flip", checked<&jitter_flip_arguments, &jitter_flip>); }

}  // namespace
}  // namespace exml
