// From the dtype of a tensor to a typed pointer to its values.
#pragma once

#include <ATen/core/Tensor.h>

#include <type_traits>

#include "math/bfloat16.h"

namespace exml {

// Calls f with a const pointer of the type that x holds: double, float or, for pixels, BFloat16.
template <typename F>
void dispatch_pixels(const at::Tensor& x, F f) {
  const void* data = x.const_data_ptr();
  switch (x.scalar_type()) {
    case at::kDouble:
      return f(static_cast<const double*>(data));
    case at::kFloat:
      return f(static_cast<const float*>(data));
    case at::kBFloat16:
      return f(static_cast<const BFloat16*>(data));
    default:
      TORCH_INTERNAL_ASSERT(false, "no kernel for dtype ", x.scalar_type());
  }
}

// The same for tensors that are never bfloat16, such as statistics and targets: double or float.
template <typename F>
void dispatch_statistics(const at::Tensor& x, F f) {
  if (x.scalar_type() == at::kDouble)
    f(x.const_data_ptr<double>());
  else
    f(x.const_data_ptr<float>());
}

// The type behind the pointer that f gets.
template <typename Pointer>
using PixelOf = std::remove_const_t<std::remove_pointer_t<Pointer>>;

}  // namespace exml
