// From a tensor's dtype to a typed pointer to its pixels.
#pragma once

#include <ATen/core/Tensor.h>

#include "math/bfloat16.h"

namespace exml {

// Calls f with a const pointer of the type that x holds: float, double or BFloat16.
template <typename F>
void dispatch_pixels(const at::Tensor& x, F f) {
  const void* data = x.const_data_ptr();
  switch (x.scalar_type()) {
    case at::kDouble:
      return f(static_cast<const double*>(data));
    case at::kBFloat16:
      return f(static_cast<const BFloat16*>(data));
    default:
      return f(static_cast<const float*>(data));
  }
}

}  // namespace exml
