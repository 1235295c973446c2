// From the dtype of a tensor to a typed pointer to its values.
#pragma once

#include <type_traits>

#include "math/bfloat16.h"
#include "ops/tensor.h"

namespace exml {

// Calls f with a const pointer of the type that x holds: double, float or, for pixels, BFloat16.
template <typename F>
void dispatch_pixels(const Tensor& x, F f) {
  const void* data = x.const_data_ptr();
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return f(static_cast<const double*>(data));
    case ScalarType::Float:
      return f(static_cast<const float*>(data));
    case ScalarType::BFloat16:
      return f(static_cast<const BFloat16*>(data));
    default:
      STD_TORCH_CHECK(false, "no kernel for dtype ", x.scalar_type());
  }
}

// The same for tensors that are never bfloat16, such as statistics and targets: double or float.
template <typename F>
void dispatch_statistics(const Tensor& x, F f) {
  if (x.scalar_type() == ScalarType::Double)
    f(x.const_data_ptr<double>());
  else
    f(x.const_data_ptr<float>());
}

// The type behind the pointer that f gets.
template <typename Pointer>
using PixelOf = std::remove_const_t<std::remove_pointer_t<Pointer>>;

// The values of t, or null where there is none. T may be BFloat16, for which the ABI has no typed pointer.
template <typename T>
const T* values_or_null(const OptionalTensor& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

}  // namespace exml
