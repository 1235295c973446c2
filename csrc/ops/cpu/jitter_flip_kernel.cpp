#include <algorithm>

#include "math/jitter.h"
#include "ops/backend.h"
#include "ops/dispatch.h"
#include "ops/jitter_flip.h"

#define EXML_SIMD_SOURCE "ops/cpu/jitter_flip_simd.h"
#include "ops/cpu/for_each_capability.h"

namespace exml {
namespace {

// Values that one task of a parallel loop handles.
constexpr int64_t kTask = 16384;

template <typename T, typename U>
void jitter_rows(const JitterFlip& arguments, const T* x, U* out) {
  const auto sizes = arguments.x.sizes();
  const int64_t channels = sizes[1], height = sizes[2], width = sizes[3];
  const auto from = arguments.x.strides(), to = arguments.out.strides();
  const int64_t* shift = arguments.shift.const_data_ptr<int64_t>();
  const bool* flip = arguments.flip.const_data_ptr<bool>();
  // Rows of an image one after the other, each in all channels, so that channels_last is written as it lies.
  parallel_for(0, sizes[0] * height, std::max<int64_t>(1, kTask / (channels * width)), [&](int64_t b, int64_t e) {
    for (int64_t row = b; row < e; ++row) {
      const int64_t n = row / height, i = row % height;
      const int64_t* down_right = shift + n * arguments.shift_step();
      const bool mirrored = flip[n * arguments.flip_step()];
      const ShiftedLine lines(height, down_right[0], false, arguments.wrap, arguments.adjoint);
      const ShiftedLine columns(width, down_right[1], mirrored, arguments.wrap, arguments.adjoint);
      const int64_t source_row = lines.source(i);
      for (int64_t c = 0; c < channels; ++c) {
        const T* line = x + n * from[0] + c * from[1] + source_row * from[2];
        U* target = out + n * to[0] + c * to[1] + i * to[2];
        for (int64_t j = 0; j < width;) {
          const int64_t k = source_row < 0 ? -1 : columns.source(j);
          if (k < 0) {
            narrow(Accumulator<U>(0), target[j++ * to[3]]);
            continue;
          }
          const int64_t run = std::min(width - j, mirrored ? k + 1 : width - k);
          EXML_CPU_CALL(copy_run, line + k * from[3], mirrored ? -from[3] : from[3], target + j * to[3], to[3], run);
          j += run;
        }
      }
    }
  });
}

Tensor jitter_flip(const JitterFlip& arguments) {
  if (arguments.x.numel() == 0) return arguments.out;
  dispatch_pixels(arguments.x, [&](auto* x) {
    dispatch_pixels(arguments.out, [&](auto* typed) {
      using U = PixelOf<decltype(typed)>;
      jitter_rows(arguments, x, static_cast<U*>(arguments.out.mutable_data_ptr()));
    });
  });
  return arguments.out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CPU, m) { m.impl("_jitter_flip", checked<&jitter_flip_arguments, &jitter_flip>); }

}  // namespace
}  // namespace exml
