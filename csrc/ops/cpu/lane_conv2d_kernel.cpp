#include <algorithm>
#include <utility>
#include <vector>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/cpu/scratch.h"
#include "ops/dispatch.h"
#include "ops/lane_conv2d.h"

namespace exml::cpu {

// Sizes of one convolution. Scratch memory is [channel][row][column][image]: x with columns of zeros at both sides and
// rows of `row` pixels; `plane` and `out_plane` lie between channels.
struct LaneShape {
  int64_t channels, height, kernel_height, kernel_width, row, plane, top, out_height, out_width, out_plane;
};

}  // namespace exml::cpu

#define EXML_SIMD_SOURCE "ops/cpu/lane_conv2d_simd.h"
#include "ops/cpu/for_each_capability.h"

namespace exml {
namespace {

using cpu::LaneShape;

// Planes lie an odd number of vectors apart. At powers of two their pixels would compete for the same cache lines.
int64_t plane_of(int64_t height, int64_t row) { return height * row | 1; }

LaneShape shape_of(const Tensor& x, int64_t kernel_height, int64_t kernel_width, int64_t top, int64_t left) {
  const int64_t row = x.size(3) + 2 * left, out_height = x.size(2) + 2 * top - kernel_height + 1;
  const int64_t out_width = row - kernel_width + 1;
  return {x.size(1),     x.size(2),
          kernel_height, kernel_width,
          row,           plane_of(x.size(2), row),
          top,           out_height,
          out_width,     plane_of(out_height, out_width)};
}

// Where each value of an image, in the order of the memory format, lies in scratch memory.
std::vector<int32_t> places(const Tensor& x, int64_t row, int64_t plane, int64_t left) {
  const int64_t channels = x.size(1), height = x.size(2), width = x.size(3);
  STD_TORCH_CHECK(channels * plane <= INT32_MAX, "lane_conv2d: images of ", shown(x.sizes()), " are too large");
  const bool rows_first = x.is_contiguous();
  std::vector<int32_t> place(channels * height * width);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; ++j)
        place[rows_first ? (c * height + i) * width + j : (i * width + j) * channels + c] =
            static_cast<int32_t>(c * plane + i * row + left + j);
  return place;
}

template <typename A>
A* padded_images(const LaneShape& s, int64_t left, int64_t images) {
  const int64_t size = s.channels * s.plane * images;
  A* memory = scratch<A, 0>(size);
  if (left > 0) std::fill_n(memory, size, A(0));  // the columns of zeros
  return memory;
}

// The convolution of x, or its adjoint's with the weights of the convolution.
Tensor convolve(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t top, int64_t left,
                bool adjoint) {
  const int64_t batch = x.size(0), outputs = weight.size(adjoint ? 1 : 0);
  const LaneShape s = shape_of(x, weight.size(2), weight.size(3), top, left);
  const auto format = lane_conv2d_format(x, weight);
  Tensor out = empty({batch, outputs, s.out_height, s.out_width}, x.scalar_type(), x, format);
  const auto from = places(x, s.row, s.plane, left), to = places(out, s.out_width, s.out_plane, 0);
  const Tensor plain = as_contiguous(weight), offsets = bias ? as_contiguous(*bias) : plain;
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    const int64_t n = EXML_CPU_CALL(lane_images, A{});
    T* result = static_cast<T*>(out.mutable_data_ptr());
    std::vector<A> weights(plain.numel()), start(outputs, A(0));
    EXML_CPU_CALL(lane_weights, static_cast<const T*>(plain.const_data_ptr()), outputs, s.channels,
                  s.kernel_height * s.kernel_width, adjoint, weights.data());
    if (bias)
      for (int64_t k = 0; k < outputs; ++k) start[k] = widen(static_cast<const T*>(offsets.const_data_ptr())[k]);
    const int64_t size = from.size(), out_size = to.size();
    parallel_for(0, (batch + n - 1) / n, 1, [&](int64_t begin, int64_t end) {
      A *images = padded_images<A>(s, left, n), *results = scratch<A, 1>(outputs * s.out_plane * n);
      for (int64_t block = begin; block < end; ++block) {
        const int64_t count = std::min(n, batch - block * n);
        EXML_CPU_CALL(to_lanes, pixels + block * n * size, size, count, from.data(), images);
        EXML_CPU_CALL(lane_convolve, images, weights.data(), start.data(), outputs, s, results);
        EXML_CPU_CALL(from_lanes, results, out_size, count, to.data(), result + block * n * out_size);
      }
    });
  });
  return out;
}

Tensor dense(const Tensor& x) {
  return x.is_contiguous() || is_channels_last(x) ? x : as_contiguous(x, suggested_format(x));
}

}  // namespace

Tensor lane_conv2d_cpu(const LaneConv2d& a) {
  if (a.x.numel() == 0 || a.weight.numel() == 0) return library_lane_conv2d(a);
  return convolve(dense(a.x), a.weight, a.bias, a.padding[0], a.padding[1], false);
}

Tensor lane_conv2d_input_cpu(const LaneConv2dInput& a) {
  if (a.grad.numel() == 0 || a.weight.numel() == 0) return library_lane_conv2d_input(a);
  const int64_t top = a.weight.size(2) - 1 - a.padding[0], left = a.weight.size(3) - 1 - a.padding[1];
  return convolve(dense(a.grad), a.weight, std::nullopt, top, left, true);
}

Tensor lane_conv2d_weight_cpu(const LaneConv2dWeight& a) {
  if (a.grad.numel() == 0 || a.x.numel() == 0) return library_lane_conv2d_weight(a);
  const Tensor grad = dense(a.grad), x = dense(a.x);
  const Sizes sizes = a.sizes, padding = a.padding;
  const int64_t batch = x.size(0), outputs = sizes[0];
  const LaneShape s = shape_of(x, sizes[2], sizes[3], padding[0], padding[1]);
  Tensor out = empty(sizes, x.scalar_type(), x);
  const auto from = places(x, s.row, s.plane, padding[1]), to = places(grad, s.out_width, s.out_plane, 0);
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    const int64_t n = EXML_CPU_CALL(lane_images, A{}), blocks = (batch + n - 1) / n;
    const int64_t size = from.size(), out_size = to.size(), weights = out.numel();
    const T* pulls = static_cast<const T*>(grad.const_data_ptr());
    // Totals of each thread's blocks, added in their order.
    const int64_t tasks = std::min<int64_t>(torch::stable::get_num_threads(), blocks);
    std::vector<A> totals(tasks * weights * n, A(0));
    parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
      A *images = padded_images<A>(s, padding[1], n), *grads = scratch<A, 1>(outputs * s.out_plane * n);
      for (int64_t task = first; task < last; ++task) {
        for (int64_t block = task * blocks / tasks; block < (task + 1) * blocks / tasks; ++block) {
          const int64_t count = std::min(n, batch - block * n);
          EXML_CPU_CALL(to_lanes, pixels + block * n * size, size, count, from.data(), images);
          EXML_CPU_CALL(to_lanes, pulls + block * n * out_size, out_size, count, to.data(), grads);
          EXML_CPU_CALL(lane_correlate, images, grads, outputs, s, totals.data() + task * weights * n);
        }
      }
    });
    for (int64_t task = 1; task < tasks; ++task)
      for (int64_t i = 0; i < weights * n; ++i) totals[i] += totals[task * weights * n + i];
    EXML_CPU_CALL(lane_sums, totals.data(), weights, static_cast<T*>(out.mutable_data_ptr()));
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CPU, m) {
  m.impl("_lane_conv2d_forward", checked<&lane_conv2d_arguments, &lane_conv2d_cpu>);
  m.impl("_lane_conv2d_input", checked<&lane_conv2d_input_arguments, &lane_conv2d_input_cpu>);
  m.impl("_lane_conv2d_weight", checked<&lane_conv2d_weight_arguments, &lane_conv2d_weight_cpu>);
}

}  // namespace exml
