// Launchers of the image_prior kernels. T: float, double or BFloat16.
#pragma once

#include "math/bfloat16.h"
#include "math/image_prior.h"
#include "ops/cuda/launch.h"

namespace exml::cuda {

// A batch of images and the groups over which losses are formed: each image, or all of them.
struct Images {
  int64_t images, channels, height, width;
  bool channels_last, per_image;

  int64_t groups() const { return per_image ? images : 1; }
  double planes_per_group() const { return double(per_image ? 1 : images) * double(channels); }
};

// Bytes of scratch memory for forward and backward.
template <typename T>
int64_t image_prior_forward_workspace(const Images& shape);
template <typename T>
int64_t image_prior_backward_workspace(const Images& shape);

// Writes the losses (kPriorLosses, groups) and the sums (groups, kPriorSums).
template <typename T>
void image_prior_forward(const T* x, const Images& shape, const BlurWindow<Accumulator<T>>& window, void* workspace,
                         Accumulator<T>* losses, double* sums, cudaStream_t stream);

// grads: (kPriorLosses, groups). out is laid out as x.
template <typename T>
void image_prior_backward(const Accumulator<T>* grads, const T* x, const double* sums, const Images& shape,
                          const BlurWindow<Accumulator<T>>& window, void* workspace, T* out, cudaStream_t stream);

}  // namespace exml::cuda
