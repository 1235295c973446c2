// Argument checks that several ops share. Each message names the op, the argument, the expectation and the given value.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>

namespace exml {

inline void check_pixels(const char* op, const char* name, const at::Tensor& x) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kDouble, op, ": ", name,
                    " must be float32, bfloat16 or float64, got ", dtype);
  TORCH_CHECK_VALUE(x.layout() == at::kStrided, op, ": ", name, " must be a dense tensor, got ", x.layout());
}

inline void check_device(const char* op, const char* name, const at::Tensor& t, const char* anchor_name,
                         const at::Tensor& anchor) {
  TORCH_CHECK_VALUE(t.device() == anchor.device(), op, ": ", name, " must be on ", anchor_name, "'s device ",
                    anchor.device(), ", got ", t.device());
}

inline void check_no_grad(const char* op, const char* name, const at::Tensor& t) {
  TORCH_CHECK_VALUE(!t.requires_grad(), op, ": ", name, " is taken as a constant and must not require grad; detach it");
}

inline void check_temperature(const char* op, double temperature) {
  TORCH_CHECK_VALUE(temperature > 0 && std::isfinite(temperature), op,
                    ": temperature must be positive and finite, got ", temperature);
}

// A tensor that an op handed to its backward op, or a gradient that arrives there. A kernel reads it without a check of
// its own, so that it must be dense.
inline at::Tensor checked_saved(const char* op, const char* name, const at::Tensor& t, at::IntArrayRef shape,
                                at::ScalarType dtype, const at::Tensor& x) {
  TORCH_CHECK_VALUE(t.scalar_type() == dtype && t.sizes() == shape, op, ": ", name, " must be ", dtype, " of shape ",
                    shape, ", got ", t.scalar_type(), " of shape ", t.sizes());
  check_device(op, name, t, "x", x);
  return t.contiguous();
}

// The dtype of sums and losses over pixels of x.
inline at::ScalarType accumulator_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace exml
