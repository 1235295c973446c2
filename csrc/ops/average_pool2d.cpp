#include "ops/average_pool2d.h"

#include <array>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/library_ops.h"
#include "ops/schema.h"

namespace exml {

AveragePool2d average_pool2d_arguments(const Tensor& x, Sizes kernel) {
  check_pixels("average_pool2d", "x", x);
  EXML_CHECK_VALUE(x.dim() == 4 && x.size(1) > 0,
                   "average_pool2d: x must have shape (N, C, H, W) with at least one channel, got ", x.sizes());
  EXML_CHECK_VALUE(kernel.size() == 2, "average_pool2d: kernel must be two numbers, got ", kernel);
  EXML_CHECK_VALUE(kernel[0] > 0 && kernel[1] > 0 && kernel[0] <= x.size(2) && kernel[1] <= x.size(3),
                   "average_pool2d: kernel must be from 1 to x's height and width, got ", kernel, " for ", x.sizes());
  return {x, kernel[0], kernel[1]};
}

AveragePool2dBackward average_pool2d_backward_arguments(const Tensor& grad, Sizes sizes, Sizes kernel,
                                                        bool channels_last) {
  check_pixels("average_pool2d", "grad", grad);
  EXML_CHECK_VALUE(sizes.size() == 4 && kernel.size() == 2 && kernel[0] > 0 && kernel[1] > 0,
                   "average_pool2d: sizes must be four numbers, and kernel two positive ones, got ", sizes, " and ",
                   kernel);
  const std::array<int64_t, 4> pooled{sizes[0], sizes[1], sizes[2] / kernel[0], sizes[3] / kernel[1]};
  EXML_CHECK_VALUE(equal(grad.sizes(), pooled), "average_pool2d: grad must have shape ", Sizes(pooled), ", got ",
                   grad.sizes());
  return {grad, sizes, kernel[0], kernel[1], channels_last};
}

Tensor library_average_pool2d(const AveragePool2d& a) {
  const std::array<int64_t, 2> window{a.height, a.width};
  return call_library<1>("aten::avg_pool2d", "", a.x, Sizes(window), Sizes(window), Sizes({0, 0}), false, true,
                         std::nullopt)[0];
}

Tensor library_average_pool2d_backward(const AveragePool2dBackward& a) {
  const auto format = a.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  // The gradient depends on the shape of x only, so that memory without values stands in for x.
  const Tensor shape_only = empty(a.sizes, a.grad.scalar_type(), a.grad, format);
  const std::array<int64_t, 2> window{a.height, a.width};
  return call_library<1>("aten::avg_pool2d_backward", "", as_contiguous(a.grad, format), shape_only, Sizes(window),
                         Sizes(window), Sizes({0, 0}), false, true, std::nullopt)[0];
}

EXML_SCHEMAS(m) {
  m.def("_average_pool2d_forward(Tensor x, int[2] kernel) -> Tensor");
  m.def("_average_pool2d_backward(Tensor grad, int[] sizes, int[2] kernel, bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(exml, CompositeExplicitAutograd, m) {
  m.impl("_average_pool2d_forward", checked<&average_pool2d_arguments, &library_average_pool2d>);
  m.impl("_average_pool2d_backward", checked<&average_pool2d_backward_arguments, &library_average_pool2d_backward>);
}

}  // namespace exml
