#include <algorithm>
#include <type_traits>
#include <vector>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/dispatch.h"
#include "ops/image_prior.h"

namespace exml::cpu {

// `height` rows of `length` values whose horizontal neighbours lie `step` apart: one channel of a contiguous image
// (step 1), or all channels of a channels_last image (step C).
template <typename A>
struct Plane {
  const A* pixels;
  int64_t height, length, step;

  const A* row(int64_t i) const { return pixels + i * length; }
  int64_t width() const { return length / step; }
  int64_t size() const { return height * length; }
};

}  // namespace exml::cpu

#define EXML_SIMD_SOURCE "ops/cpu/image_prior_simd.h"
#include "ops/cpu/for_each_capability.h"

namespace exml {
namespace {

// Calls f(plane index, plane, buffer of a plane, scratch) for every plane of x, in parallel; a thread's buffers are its
// own.
template <typename T, typename F>
void for_each_plane(const T* pixels, const Tensor& x, const PriorShape& shape, int radius, F f) {
  using A = Accumulator<T>;
  const int64_t step = x.is_contiguous() ? 1 : shape.channels, length = shape.width * step;
  const int64_t size = shape.height * length, planes = x.numel() / size;
  parallel_for(0, planes, std::max<int64_t>(1, 8192 / size), [&](int64_t begin, int64_t end) {
    std::vector<A> widened(std::is_same_v<T, A> ? 0 : size), residual(size);
    std::vector<A> scratch(size + length + 2 * radius * step);
    for (int64_t p = begin; p < end; ++p) {
      cpu::Plane<A> plane{nullptr, shape.height, length, step};
      if constexpr (std::is_same_v<T, A>) {
        plane.pixels = pixels + p * size;
      } else {
        std::transform(pixels + p * size, pixels + (p + 1) * size, widened.begin(),
                       [](T value) { return widen(value); });
        plane.pixels = widened.data();
      }
      f(p, plane, residual.data(), scratch.data());
    }
  });
}

std::tuple<Tensor, Tensor> forward(const ImagePrior& arguments) {
  const auto& [x, shape, kernel_size, sigma] = arguments;
  const int64_t groups = shape.groups();
  Tensor sums = empty({groups, kPriorSums}, ScalarType::Double, x);
  Tensor losses = empty(shape.losses(), accumulator_dtype(x), x);
  dispatch_pixels(x, [&](auto* pixels) {
    using A = Accumulator<PixelOf<decltype(pixels)>>;
    const int64_t planes = shape.images * (x.is_contiguous() ? shape.channels : 1);
    std::vector<double> partial(planes * kPriorSums);
    const auto window = gaussian_window<A>(kernel_size, sigma);
    for_each_plane(pixels, x, shape, window.radius,
                   [&](int64_t p, const cpu::Plane<A>& plane, A* residual, A* scratch) {
                     EXML_CPU_CALL(blur_residual, plane, window, scratch, residual);
                     EXML_CPU_CALL(plane_sums, plane, residual, partial.data() + p * kPriorSums);
                   });
    double* total = sums.mutable_data_ptr<double>();
    std::fill_n(total, groups * kPriorSums, 0.0);
    for (int64_t p = 0; p < planes; ++p)  // in a fixed order, which does not depend on the threads
      for (int i = 0; i < kPriorSums; ++i) total[p * groups / planes * kPriorSums + i] += partial[p * kPriorSums + i];
    for (int64_t g = 0; g < groups; ++g) {
      double group[kPriorLosses];
      prior_losses(total + g * kPriorSums, shape.planes_per_group(), shape.height, shape.width, group);
      for (int i = 0; i < kPriorLosses; ++i) losses.mutable_data_ptr<A>()[i * groups + g] = static_cast<A>(group[i]);
    }
  });
  return {losses, sums};
}

Tensor backward(const ImagePriorBackward& arguments) {
  const auto& [op, grads, sums] = arguments;
  const auto& [x, shape, kernel_size, sigma] = op;
  Tensor out = new_like(x);
  const int64_t groups = shape.groups();
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    std::vector<PriorPull<A>> pulls;
    for (int64_t g = 0; g < groups; ++g) {
      double group[kPriorLosses];
      for (int i = 0; i < kPriorLosses; ++i) group[i] = grads.const_data_ptr<A>()[i * groups + g];
      pulls.push_back(prior_pull<A>(group, sums.const_data_ptr<double>() + g * kPriorSums, shape.planes_per_group(),
                                    shape.height, shape.width));
    }
    const auto window = gaussian_window<A>(kernel_size, sigma);
    T* result = static_cast<T*>(out.mutable_data_ptr());
    for_each_plane(pixels, x, shape, window.radius,
                   [&](int64_t p, const cpu::Plane<A>& plane, A* residual, A* scratch) {
                     const auto& pull = pulls[p * groups / (x.numel() / plane.size())];
                     if (pull.blur != A(0)) EXML_CPU_CALL(blur_residual, plane, window, scratch, residual);
                     T* target = result + p * plane.size();
                     if constexpr (std::is_same_v<T, A>) {
                       EXML_CPU_CALL(plane_gradient, plane, pull, window, residual, scratch, target);
                     } else {
                       std::vector<A> wide(plane.size());
                       EXML_CPU_CALL(plane_gradient, plane, pull, window, residual, scratch, wide.data());
                       for (int64_t e = 0; e < plane.size(); ++e) narrow(wide[e], target[e]);
                     }
                   });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CPU, m) {
  m.impl("_image_prior_forward", checked<&image_prior_arguments, &forward>);
  m.impl("_image_prior_backward", checked<&image_prior_backward_arguments, &backward>);
}

}  // namespace
}  // namespace exml
