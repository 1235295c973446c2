// Image priors in one pass: total variation, Gaussian-blur residual, l2 norm (Yin 2020, Eq. 3; Carta 2022, 4.1).
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "math/image_prior.h"

namespace exml {

// A group is the set of images over which a loss is formed: one image (per_image) or the whole batch.
struct PriorShape {
  int64_t images, channels, height, width;
  bool per_image;

  int64_t groups() const { return per_image ? images : 1; }
  double planes_per_group() const { return double(per_image ? 1 : images) * double(channels); }
};

// x is (N, C, H, W), contiguous or channels_last. Returns the losses (kPriorLosses, groups) in the accumulator's dtype
// and the sums (groups, kPriorSums) in float64.
std::tuple<at::Tensor, at::Tensor> image_prior_forward_cpu(const at::Tensor& x, const PriorShape& shape,
                                                           int kernel_size, double sigma);
std::tuple<at::Tensor, at::Tensor> image_prior_forward_cuda(const at::Tensor& x, const PriorShape& shape,
                                                            int kernel_size, double sigma);

// grads is (kPriorLosses, groups) and contiguous, in the dtype of the losses. Returns the gradient of x, laid out as x.
at::Tensor image_prior_backward_cpu(const at::Tensor& grads, const at::Tensor& x, const at::Tensor& sums,
                                    const PriorShape& shape, int kernel_size, double sigma);
at::Tensor image_prior_backward_cuda(const at::Tensor& grads, const at::Tensor& x, const at::Tensor& sums,
                                     const PriorShape& shape, int kernel_size, double sigma);

}  // namespace exml
