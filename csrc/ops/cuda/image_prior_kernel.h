// Launchers of image_prior's CUDA kernels. T: float, double or BFloat16; A: its accumulator.
#pragma once

#include "math/bfloat16.h"
#include "math/image_prior.h"
#include "ops/cuda/launch.h"

namespace exml::cuda {

// A batch of images by its strides, in elements, so that both memory formats are read in place.
struct Images {
  int64_t count, channels, height, width;
  int64_t image_stride, channel_stride, row_stride, pixel_stride;
};

// Number of blocks, and so of partial sums, for all planes of the batch.
int64_t image_prior_blocks(const Images& images);

// partial: image_prior_blocks(images) * kPriorSums; losses: (kPriorLosses, groups); sums: (groups, kPriorSums).
template <typename T>
void image_prior_forward(const T* x, const Images& images, int64_t groups, const BlurWindow<Accumulator<T>>& window,
                         double* partial, Accumulator<T>* losses, double* sums, cudaStream_t stream);

// out is laid out as x; grads: (kPriorLosses, groups).
template <typename T>
void image_prior_backward(const Accumulator<T>* grads, const T* x, const double* sums, const Images& images,
                          int64_t groups, const BlurWindow<Accumulator<T>>& window, T* out, cudaStream_t stream);

}  // namespace exml::cuda
