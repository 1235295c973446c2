// PyTorch's own ops, called through the dispatcher.
#pragma once

#include <array>
#include <string>

#include "ops/tensor.h"

namespace exml {

// The results of an op whose results are kResults tensors.
template <size_t kResults, typename... Arguments>
std::array<Tensor, kResults> call_library(const char* name, const char* overload, const Arguments&... arguments) {
  using torch::stable::detail::from;
  std::array<StableIValue, std::max(kResults, sizeof...(Arguments))> stack{from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  std::array<Tensor, kResults> results;
  for (size_t i = 0; i < kResults; ++i) results[i] = torch::stable::detail::to<Tensor>(stack[i]);
  return results;
}

inline Tensor convolution(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Sizes stride,
                          Sizes padding, Sizes dilation, int64_t groups) {
  return call_library<1>("aten::convolution", "", x, weight, bias, stride, padding, dilation, false, Sizes({0, 0}),
                         groups)[0];
}

// The convolution with a weight in a layout of oneDNN's own.
inline Tensor packed_convolution(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Sizes stride,
                                 Sizes padding, Sizes dilation, int64_t groups) {
  return call_library<1>("mkldnn::_convolution_pointwise", "", x, weight, bias, padding, stride, dilation, groups,
                         std::string("none"), Sizes(), std::nullopt)[0];
}

// The gradients of a convolution without bias: of x, or of the weight.
inline Tensor convolution_gradient(const Tensor& grad, const Tensor& x, const Tensor& weight, Sizes stride,
                                   Sizes padding, Sizes dilation, int64_t groups, bool of_x) {
  const bool wanted[] = {of_x, !of_x, false};
  const auto gradients =
      call_library<3>("aten::convolution_backward", "", grad, x, weight, std::nullopt, stride, padding, dilation, false,
                      Sizes({0, 0}), groups, torch::headeronly::HeaderOnlyArrayRef<bool>(wanted));
  return gradients[of_x ? 0 : 1];
}

inline Tensor slice(const Tensor& x, int64_t dim, int64_t start, int64_t end, int64_t step = 1) {
  return call_library<1>("aten::slice", "Tensor", x, dim, std::optional<int64_t>(start), std::optional<int64_t>(end),
                         step)[0];
}

}  // namespace exml
