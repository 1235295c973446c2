// Argument checks that several ops share. Each message names the op, the argument, the expectation and the given value.
#pragma once

#include <cmath>
#include <sstream>
#include <stdexcept>

#include "ops/tensor.h"

namespace exml {

// How messages show values. The stable ABI has no printing of its own.
template <typename T>
const T& shown(const T& value) {
  return value;
}
inline std::string shown(Sizes sizes) {
  std::ostringstream text;
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "[") << sizes[i];
  return sizes.empty() ? "[]" : text.str() + "]";
}
inline std::string shown(Layout layout) {
  return layout == Layout::Strided ? "Strided" : layout == Layout::Mkldnn ? "Mkldnn" : "Sparse";
}
inline std::string shown(MemoryFormat format) {
  constexpr const char* kNames[] = {"Contiguous", "Preserve", "ChannelsLast", "ChannelsLast3d"};
  return kNames[static_cast<int>(format)];
}
inline std::string shown(const torch::stable::Device& device) {
  const auto type = device.type();
  using torch::headeronly::DeviceType;
  if (type == DeviceType::CPU) return "cpu";
  if (type == DeviceType::Meta) return "meta";
  return (type == DeviceType::CUDA ? "cuda:" : "device ") + std::to_string(device.index());
}

template <typename... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream text;
  ((text << shown(parts)), ...);
  return text.str();
}

}  // namespace exml

// Python sees a ValueError (exml_fast/ops/_registration.py) and an IndexError.
#define EXML_CHECK_VALUE(condition, ...) \
  if (!(condition)) throw std::invalid_argument(::exml::message(__VA_ARGS__))
#define EXML_CHECK_INDEX(condition, ...) \
  if (!(condition)) throw std::out_of_range(::exml::message(__VA_ARGS__))

namespace exml {

inline void check_pixels(const char* op, const char* name, const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  EXML_CHECK_VALUE(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Double, op, ": ",
                   name, " must be float32, bfloat16 or float64, got ", dtype);
  EXML_CHECK_VALUE(x.layout() == Layout::Strided, op, ": ", name, " must be a dense tensor, got ", x.layout());
}

inline void check_device(const char* op, const char* name, const Tensor& t, const char* anchor_name,
                         const Tensor& anchor) {
  EXML_CHECK_VALUE(t.device() == anchor.device(), op, ": ", name, " must be on ", anchor_name, "'s device ",
                   anchor.device(), ", got ", t.device());
}

inline void check_temperature(const char* op, double temperature) {
  EXML_CHECK_VALUE(temperature > 0 && std::isfinite(temperature), op, ": temperature must be positive and finite, got ",
                   temperature);
}

// A tensor that an op handed to its backward op, or a gradient that arrives there. A kernel reads it without a check of
// its own, so that it must be dense.
inline Tensor checked_saved(const char* op, const char* name, const Tensor& t, Sizes shape, ScalarType dtype,
                            const Tensor& x) {
  EXML_CHECK_VALUE(t.scalar_type() == dtype && equal(t.sizes(), shape), op, ": ", name, " must be ", dtype,
                   " of shape ", shape, ", got ", t.scalar_type(), " of shape ", t.sizes());
  check_device(op, name, t, "x", x);
  return as_contiguous(t);
}

// The dtype of sums and losses over pixels of x.
inline ScalarType accumulator_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace exml
