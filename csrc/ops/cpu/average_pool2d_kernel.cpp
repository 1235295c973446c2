#include <algorithm>
#include <vector>

#include "ops/average_pool2d.h"
#include "ops/backend.h"
#include "ops/dispatch.h"

#define EXML_SIMD_SOURCE "ops/cpu/average_pool2d_simd.h"
#include "ops/cpu/for_each_capability.h"

namespace exml {
namespace {

// Values that one task of a parallel loop handles.
constexpr int64_t kTask = 16384;

constexpr auto kChannelsLast = MemoryFormat::ChannelsLast;
// From this number of channels on, the library's forward pass fills its vectors.
constexpr int64_t kManyChannels = 16;

Tensor forward(const AveragePool2d& arguments) {
  const auto& [x, height, width] = arguments;
  const int64_t channels = x.size(1), rows = x.size(2) / height, outputs = x.size(3) / width;
  if (!is_channels_last(x) || channels >= kManyChannels) return library_average_pool2d(arguments);
  Tensor out = empty({x.size(0), channels, rows, outputs}, x.scalar_type(), x, kChannelsLast);
  if (out.numel() == 0) return out;
  const int64_t row = x.size(3) * channels;
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    T* result = static_cast<T*>(out.mutable_data_ptr());
    const int64_t grain = std::max<int64_t>(1, kTask / (height * row));
    parallel_for(0, x.size(0) * rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<A> line(row);
      for (int64_t task = begin; task < end; ++task) {
        const T* from = pixels + (task / rows * x.size(2) + task % rows * height) * row;
        EXML_CPU_CALL(pool_row, from, line.data(), result + task * outputs * channels, height, row, width, channels,
                      outputs);
      }
    });
  });
  return out;
}

Tensor backward(const AveragePool2dBackward& arguments) {
  const auto& [unordered, sizes, height, width, channels_last] = arguments;
  if (!channels_last) return library_average_pool2d_backward(arguments);
  const Tensor grad = as_contiguous(unordered, kChannelsLast);
  Tensor out = empty(sizes, grad.scalar_type(), grad, kChannelsLast);
  if (out.numel() == 0) return out;
  const int64_t channels = grad.size(1), rows = grad.size(2), outputs = grad.size(3);
  const int64_t row = out.size(3) * channels, written = outputs * width * channels;
  const int64_t rest = out.size(2) - rows * height;
  dispatch_pixels(grad, [&](auto* pulls) {
    using T = PixelOf<decltype(pulls)>;
    T* result = static_cast<T*>(out.mutable_data_ptr());
    const int64_t grain = std::max<int64_t>(1, kTask / (height * row));
    parallel_for(0, grad.size(0) * rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<T> line(outputs * channels);
      for (int64_t task = begin; task < end; ++task) {
        T* to = result + (task / rows * out.size(2) + task % rows * height) * row;
        EXML_CPU_CALL(spread_row, pulls + task * outputs * channels, line.data(), to, height, width, channels, outputs);
        std::fill(to + written, to + row, T{});
        for (int64_t r = 1; r < height; ++r) std::copy_n(to, row, to + r * row);
        if (task % rows == rows - 1) std::fill_n(to + height * row, rest * row, T{});
      }
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CPU, m) {
  m.impl("_average_pool2d_forward", checked<&average_pool2d_arguments, &forward>);
  m.impl("_average_pool2d_backward", checked<&average_pool2d_backward_arguments, &backward>);
}

}  // namespace
}  // namespace exml
