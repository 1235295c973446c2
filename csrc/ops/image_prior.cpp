#include "ops/image_prior.h"

#include "ops/checks.h"
#include "ops/schema.h"

namespace exml {
namespace {

PriorShape checked_shape(const Tensor& x, int64_t kernel_size, double sigma, bool per_image) {
  check_pixels("image_prior", "x", x);
  EXML_CHECK_VALUE(x.dim() == 4, "image_prior: x must be a batch of images (N, C, H, W), got shape ", x.sizes());
  EXML_CHECK_VALUE(x.numel() > 0, "image_prior: x must not be empty, got shape ", x.sizes());
  EXML_CHECK_VALUE(kernel_size % 2 == 1 && kernel_size >= 1 && kernel_size <= kMaxBlurKernel,
                   "image_prior: kernel_size must be odd and between 1 and ", kMaxBlurKernel, ", got ", kernel_size);
  EXML_CHECK_VALUE(sigma > 0 && std::isfinite(sigma), "image_prior: sigma must be positive and finite, got ", sigma);
  const int64_t least = std::max<int64_t>(2, kernel_size / 2 + 1);
  EXML_CHECK_VALUE(x.size(2) >= least && x.size(3) >= least, "image_prior: x must be at least ", least, " x ", least,
                   " pixels for kernel_size ", kernel_size, ", got shape ", x.sizes());
  return {x.size(0), x.size(1), x.size(2), x.size(3), per_image};
}

Tensor dense(const Tensor& x) { return is_channels_last(x) ? x : as_contiguous(x); }

}  // namespace

ImagePrior image_prior_arguments(const Tensor& x, int64_t kernel_size, double sigma, bool per_image) {
  const PriorShape shape = checked_shape(x, kernel_size, sigma, per_image);
  return {dense(x), shape, static_cast<int>(kernel_size), sigma};
}

ImagePriorBackward image_prior_backward_arguments(const Tensor& grads, const Tensor& x, const Tensor& sums,
                                                  int64_t kernel_size, double sigma, bool per_image) {
  const ImagePrior op = image_prior_arguments(x, kernel_size, sigma, per_image);
  return {op, checked_saved("image_prior", "grads", grads, op.shape.losses(), accumulator_dtype(x), x),
          checked_saved("image_prior", "sums", sums, {op.shape.groups(), kPriorSums}, ScalarType::Double, x)};
}

EXML_SCHEMAS(m) {
  // losses: (4,) or, per image, (4, N): tv_l1, tv_l2, blur, l2.
  m.def("_image_prior_forward(Tensor x, int kernel_size, float sigma, bool per_image) -> (Tensor losses, Tensor sums)");
  m.def(
      "_image_prior_backward(Tensor grads, Tensor x, Tensor sums, int kernel_size, float sigma, bool per_image) -> "
      "Tensor");
}

}  // namespace exml
