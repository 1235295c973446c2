// Helpers of all binders: the device and stream to launch on, scratch memory, and typed pointers (ops/dispatch.h).
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "ops/dispatch.h"

namespace exml::cuda {

// While it lives, the device of the tensor is the current device.
class Context {
 public:
  explicit Context(const Tensor& anchor) : anchor_(anchor), guard_(anchor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(anchor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  int multiprocessors() const {
    int count = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, anchor_.get_device_index()));
    return count;
  }

  Tensor empty(Sizes sizes, ScalarType dtype) const { return exml::empty(sizes, dtype, anchor_); }
  Tensor workspace(int64_t bytes) const { return empty({bytes}, ScalarType::Byte); }

 private:
  Tensor anchor_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace exml::cuda
