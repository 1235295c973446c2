// Shift and mirror of images, with the cast to the network's dtype and memory format (Yin 2020, B.1).
#pragma once

#include <string_view>

#include "ops/tensor.h"

namespace exml {

// The arguments of a kernel. x: (N, C, H, W) of any strides. shift: int64, down and right, contiguous, (2,) or (N,
// 2). flip: bool, contiguous, () or (N,). out: (N, C, H, W), contiguous or channels_last, of any of the three dtypes.
struct JitterFlip {
  Tensor x, shift, flip, out;
  bool wrap, adjoint;

  int64_t shift_step() const { return shift.dim() == 2 ? 2 : 0; }
  int64_t flip_step() const { return flip.dim() == 1 ? 1 : 0; }
};

// Checks the arguments of exml::_jitter_flip and allocates the result.
JitterFlip jitter_flip_arguments(const Tensor& x, const Tensor& shift, const Tensor& flip, ScalarType dtype,
                                 MemoryFormat memory_format, std::string_view border, bool adjoint);

}  // namespace exml
