// The tensor of PyTorch's stable ABI, and the functions of it that the ops use. The library calls nothing else of
// PyTorch, so that one build works with every torch from 2.11 on.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace exml {

using torch::headeronly::Layout;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::parallel_for;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

inline bool equal(Sizes a, Sizes b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

inline bool is_floating_point(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
    case ScalarType::Float:
    case ScalarType::Half:
    case ScalarType::BFloat16:
    case ScalarType::Float8_e5m2:
    case ScalarType::Float8_e4m3fn:
    case ScalarType::Float8_e5m2fnuz:
    case ScalarType::Float8_e4m3fnuz:
    case ScalarType::Float8_e8m0fnu:
      return true;
    default:
      return false;
  }
}

// Strides without gaps, with the last dimension innermost, or the channels of (N, C, ...).
inline std::vector<int64_t> dense_strides(Sizes sizes, bool channels_innermost) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  const auto place = [&](size_t d) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  };
  if (channels_innermost) place(1);
  for (size_t d = sizes.size(); d-- > 0;)
    if (!channels_innermost || d != 1) place(d);
  return strides;
}

// Whether the memory of x (N, C, ...) has no gaps and the channels are innermost.
inline bool has_channels_innermost(const Tensor& x) {
  const Sizes sizes = x.sizes(), strides = x.strides();
  if (sizes.size() < 3) return false;
  const auto dense = dense_strides(sizes, true);
  for (size_t d = 0; d < sizes.size(); ++d)
    if (sizes[d] != 1 && strides[d] != dense[d]) return false;
  return true;
}

// Whether images are dense in the memory format channels_last.
inline bool is_channels_last(const Tensor& x) { return x.dim() == 4 && has_channels_innermost(x); }

// The memory format in which PyTorch makes results from x: channels_last where the strides of images say so.
inline MemoryFormat suggested_format(const Tensor& x) {
  const Sizes sizes = x.sizes(), strides = x.strides();
  if (sizes.size() != 4 || strides[1] == 0) return MemoryFormat::Contiguous;
  int64_t least = 0;
  for (const int d : {1, 3, 2, 0}) {
    const bool ambiguous = d == 0 && least == strides[1];  // as of (N, 1, 1, 1)
    if (sizes[d] == 0 || strides[d] < least || ambiguous) return MemoryFormat::Contiguous;
    least = strides[d] * std::max<int64_t>(sizes[d], 1);
  }
  return MemoryFormat::ChannelsLast;
}

// A tensor without values on the device of `neighbour`.
inline Tensor empty_strided(Sizes sizes, Sizes strides, ScalarType dtype, const Tensor& neighbour) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const auto device = neighbour.device();
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), to<int32_t>(from(dtype)),
                                                  to<int32_t>(from(device.type())), device.index(), &handle));
  return Tensor(handle);
}

inline Tensor empty(Sizes sizes, ScalarType dtype, const Tensor& neighbour,
                    MemoryFormat format = MemoryFormat::Contiguous) {
  return empty_strided(sizes, dense_strides(sizes, format == MemoryFormat::ChannelsLast), dtype, neighbour);
}

// x has no gaps; the result lies as x does.
inline Tensor new_like(const Tensor& x) { return empty_strided(x.sizes(), x.strides(), x.scalar_type(), x); }

inline Tensor zeros_like(const Tensor& x) {
  Tensor zeros = new_like(x);
  return torch::stable::zero_(zeros);
}

inline Tensor as_contiguous(const Tensor& t, MemoryFormat format = MemoryFormat::Contiguous) {
  const bool done = format == MemoryFormat::Contiguous ? t.is_contiguous() : is_channels_last(t);
  return done ? t : torch::stable::contiguous(t, format);
}

inline Tensor as_type(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}

}  // namespace exml
