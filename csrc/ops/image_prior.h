// Image priors in one pass: total variation, Gaussian-blur residual, l2 norm (Yin 2020, Eq. 3; Carta 2022, 4.1).
#pragma once

#include <tuple>
#include <vector>

#include "math/image_prior.h"
#include "ops/tensor.h"

namespace exml {

// A group is the set of images over which a loss is formed: one image (per_image) or the whole batch.
struct PriorShape {
  int64_t images, channels, height, width;
  bool per_image;

  int64_t groups() const { return per_image ? images : 1; }
  std::vector<int64_t> losses() const {
    return per_image ? std::vector<int64_t>{kPriorLosses, images} : std::vector<int64_t>{kPriorLosses};
  }
  double planes_per_group() const { return double(per_image ? 1 : images) * double(channels); }
};

// The arguments of a forward kernel: x (N, C, H, W), contiguous or channels_last. It returns the losses in the
// accumulator's dtype, (kPriorLosses,) or, per image, (kPriorLosses, N), and the sums (groups, kPriorSums) in float64.
struct ImagePrior {
  Tensor x;
  PriorShape shape;
  int kernel_size;
  double sigma;
};

// The arguments of a backward kernel: grads as the losses, contiguous, and the sums of the forward pass. It returns the
// gradient of x, laid out as x.
struct ImagePriorBackward {
  ImagePrior op;
  Tensor grads, sums;
};

// Checks the arguments of exml::_image_prior_forward and _backward and lays them out for a kernel.
ImagePrior image_prior_arguments(const Tensor& x, int64_t kernel_size, double sigma, bool per_image);
ImagePriorBackward image_prior_backward_arguments(const Tensor& grads, const Tensor& x, const Tensor& sums,
                                                  int64_t kernel_size, double sigma, bool per_image);

}  // namespace exml
