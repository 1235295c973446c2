#include "ops/average_pool2d.h"

#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/avg_pool2d_backward.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/checks.h"

namespace exml {
namespace {

using at::IntArrayRef;
using at::Tensor;

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;
// From here on the library's forward pass fills its vectors.
constexpr int64_t kManyChannels = 16;

bool own(const Tensor& x) { return x.device().is_cpu() && x.is_contiguous(kChannelsLast); }

Tensor forward(const Tensor& x, IntArrayRef kernel) {
  check_pixels("average_pool2d", "x", x);
  TORCH_CHECK_VALUE(x.dim() == 4, "average_pool2d: x must have shape (N, C, H, W), got ", x.sizes());
  TORCH_CHECK_VALUE(kernel.size() == 2, "average_pool2d: kernel must be two numbers, got ", kernel);
  TORCH_CHECK_VALUE(kernel[0] > 0 && kernel[1] > 0 && kernel[0] <= x.size(2) && kernel[1] <= x.size(3),
                    "average_pool2d: kernel must be from 1 to x's height and width, got ", kernel, " for ", x.sizes());
  if (!own(x) || x.size(1) >= kManyChannels) return at::avg_pool2d(x, kernel, kernel);
  Tensor out = at::empty({x.size(0), x.size(1), x.size(2) / kernel[0], x.size(3) / kernel[1]},
                         x.options().memory_format(kChannelsLast));
  if (out.numel() > 0) average_pool2d_forward_cpu(x, kernel[0], kernel[1], out);
  return out;
}

Tensor backward(const Tensor& grad, IntArrayRef sizes, IntArrayRef kernel, bool channels_last) {
  if (!grad.device().is_cpu() || !channels_last) {
    const auto format = channels_last ? kChannelsLast : at::MemoryFormat::Contiguous;
    const Tensor shape_only = at::empty(sizes, grad.options().memory_format(format));
    return at::avg_pool2d_backward(grad.contiguous(format), shape_only, kernel, kernel, {0, 0}, false, true,
                                   std::nullopt);
  }
  Tensor out = at::empty(sizes, grad.options().memory_format(kChannelsLast));
  if (out.numel() > 0) average_pool2d_backward_cpu(grad.contiguous(kChannelsLast), kernel[0], kernel[1], out);
  return out;
}

TORCH_LIBRARY_FRAGMENT(exml, m) {
  m.def("_average_pool2d(Tensor x, int[2] kernel) -> Tensor");
  m.def("_average_pool2d_forward(Tensor x, int[2] kernel) -> Tensor");
  m.def("_average_pool2d_backward(Tensor grad, int[] sizes, int[2] kernel, bool channels_last) -> Tensor");
}

TORCH_LIBRARY_IMPL(exml, CompositeExplicitAutograd, m) {
  m.impl("_average_pool2d_forward", &forward);
  m.impl("_average_pool2d_backward", &backward);
}

}  // namespace
}  // namespace exml
