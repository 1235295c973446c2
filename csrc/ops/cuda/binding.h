// What the binders share: from tensors to typed pointers, the current stream.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "math/bfloat16.h"
#include "ops/cpu/dispatch.h"

namespace exml {

inline cudaStream_t current_stream(const at::Tensor& t) {
  return c10::cuda::getCurrentCUDAStream(t.get_device()).stream();
}

// The pixel type behind the pointer that dispatch_pixels hands over.
template <typename P>
using PixelOf = std::remove_const_t<std::remove_pointer_t<P>>;

}  // namespace exml
