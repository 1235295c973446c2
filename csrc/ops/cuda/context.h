// Helpers of all binders: the device and stream to launch on, scratch memory, and typed pointers (ops/dispatch.h).
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "ops/dispatch.h"

namespace exml::cuda {

// While it lives, the device of the tensor is the current device.
class Context {
 public:
  explicit Context(const at::Tensor& anchor)
      : guard_(anchor.device()), device_(anchor.device()), stream_(c10::cuda::getCurrentCUDAStream()) {}

  cudaStream_t stream() const { return stream_.stream(); }

  int multiprocessors() const {
    int count = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_.index()));
    return count;
  }

  at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype) const {
    return at::empty(sizes, at::TensorOptions().device(device_).dtype(dtype));
  }
  at::Tensor workspace(int64_t bytes) const { return empty({bytes}, at::kByte); }

 private:
  c10::cuda::CUDAGuard guard_;
  c10::Device device_;
  c10::cuda::CUDAStream stream_;
};

}  // namespace exml::cuda
