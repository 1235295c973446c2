#include <algorithm>
#include <vector>

#include "ops/dispatch.h"
#include "ops/window_conv2d.h"

#define EXML_SIMD_SOURCE "ops/cpu/window_conv2d_simd.h"
#include "ops/cpu/for_each_capability.h"

namespace exml {

Tensor window_conv2d_cpu(const Tensor& x, const Tensor& windows, int64_t kernel_width, Sizes padding) {
  const int64_t batch = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t outputs = windows.size(0), kernel_height = windows.size(1), span = windows.size(2);
  const int64_t top = padding[0], left = padding[1];
  const int64_t out_height = height + 2 * top - kernel_height + 1, out_width = width + 2 * left - kernel_width + 1;
  Tensor out = empty({batch, outputs, out_height, out_width}, x.scalar_type(), x, MemoryFormat::ChannelsLast);
  // Rows of an image with zeros around them; the last window's vectors reach past its end.
  const int64_t row = (width + 2 * left) * channels, slack = span;
  const int64_t tile = std::clamp<int64_t>(65536 / std::max<int64_t>(1, row), 1, out_height);
  const int64_t tiles = (out_height + tile - 1) / tile;
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    T* result = static_cast<T*>(out.mutable_data_ptr());
    const A* weights = windows.const_data_ptr<A>();
    parallel_for(0, batch * tiles, 1, [&](int64_t begin, int64_t end) {
      std::vector<A> padded((tile + kernel_height - 1) * row + slack);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / tiles, first = task % tiles * tile, last = std::min(first + tile, out_height);
        for (int64_t i = 0; i < last - first + kernel_height - 1; ++i) {
          const int64_t source = first + i - top;
          A* line = padded.data() + i * row;
          if (source < 0 || source >= height)
            std::fill_n(line, row, A(0));
          else
            EXML_CPU_CALL(widen_row, pixels + (n * height + source) * width * channels, line + left * channels,
                          width * channels);
        }
        for (int64_t i = first; i < last; ++i)
          EXML_CPU_CALL(convolve_row, padded.data() + (i - first) * row, weights, kernel_height, span, row, channels,
                        result + (n * out_height + i) * out_width * outputs, outputs, out_width);
      }
    });
  });
  return out;
}

}  // namespace exml
