#include "ops/image_prior.h"

#include <torch/library.h>

#include "ops/checks.h"

namespace exml {
namespace {

using at::Tensor;

PriorShape checked_shape(const Tensor& x, int64_t kernel_size, double sigma, bool per_image) {
  check_pixels("image_prior", "x", x);
  TORCH_CHECK_VALUE(x.dim() == 4, "image_prior: x must be a batch of images (N, C, H, W), got shape ", x.sizes());
  TORCH_CHECK_VALUE(x.numel() > 0, "image_prior: x must not be empty, got shape ", x.sizes());
  TORCH_CHECK_VALUE(kernel_size % 2 == 1 && kernel_size >= 1 && kernel_size <= kMaxBlurKernel,
                    "image_prior: kernel_size must be odd and between 1 and ", kMaxBlurKernel, ", got ", kernel_size);
  TORCH_CHECK_VALUE(sigma > 0 && std::isfinite(sigma), "image_prior: sigma must be positive and finite, got ", sigma);
  const int64_t least = std::max<int64_t>(2, kernel_size / 2 + 1);
  TORCH_CHECK_VALUE(x.size(2) >= least && x.size(3) >= least, "image_prior: x must be at least ", least, " x ", least,
                    " pixels for kernel_size ", kernel_size, ", got shape ", x.sizes());
  return {x.size(0), x.size(1), x.size(2), x.size(3), per_image};
}

Tensor dense(const Tensor& x) { return x.is_contiguous(at::MemoryFormat::ChannelsLast) ? x : x.contiguous(); }

template <typename Forward>
std::tuple<Tensor, Tensor> checked_forward(Forward forward, const Tensor& x, int64_t kernel_size, double sigma,
                                           bool per_image) {
  const auto shape = checked_shape(x, kernel_size, sigma, per_image);
  auto [losses, sums] = forward(dense(x), shape, static_cast<int>(kernel_size), sigma);
  return {per_image ? losses : losses.squeeze(1), sums};
}

template <typename Backward>
Tensor checked_backward(Backward backward, const Tensor& grads, const Tensor& x, const Tensor& sums,
                        int64_t kernel_size, double sigma, bool per_image) {
  const auto shape = checked_shape(x, kernel_size, sigma, per_image);
  return backward(grads.contiguous(), dense(x), sums, shape, static_cast<int>(kernel_size), sigma);
}

std::tuple<Tensor, Tensor> forward_cpu(const Tensor& x, int64_t kernel_size, double sigma, bool per_image) {
  return checked_forward(image_prior_forward_cpu, x, kernel_size, sigma, per_image);
}
Tensor backward_cpu(const Tensor& grads, const Tensor& x, const Tensor& sums, int64_t kernel_size, double sigma,
                    bool per_image) {
  return checked_backward(image_prior_backward_cpu, grads, x, sums, kernel_size, sigma, per_image);
}
#ifdef EXML_WITH_CUDA
std::tuple<Tensor, Tensor> forward_cuda(const Tensor& x, int64_t kernel_size, double sigma, bool per_image) {
  return checked_forward(image_prior_forward_cuda, x, kernel_size, sigma, per_image);
}
Tensor backward_cuda(const Tensor& grads, const Tensor& x, const Tensor& sums, int64_t kernel_size, double sigma,
                     bool per_image) {
  return checked_backward(image_prior_backward_cuda, grads, x, sums, kernel_size, sigma, per_image);
}
#endif

TORCH_LIBRARY_FRAGMENT(exml, m) {
  // (4,) or, per image, (4, N): tv_l1, tv_l2, blur, l2.
  m.def("image_prior(Tensor x, int kernel_size=3, float sigma=1.0, bool per_image=False) -> Tensor");
  m.def("_image_prior_forward(Tensor x, int kernel_size, float sigma, bool per_image) -> (Tensor losses, Tensor sums)");
  m.def(
      "_image_prior_backward(Tensor grads, Tensor x, Tensor sums, int kernel_size, float sigma, bool per_image) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(exml, CPU, m) {
  m.impl("_image_prior_forward", &forward_cpu);
  m.impl("_image_prior_backward", &backward_cpu);
}
#ifdef EXML_WITH_CUDA
TORCH_LIBRARY_IMPL(exml, CUDA, m) {
  m.impl("_image_prior_forward", &forward_cuda);
  m.impl("_image_prior_backward", &backward_cuda);
}
#endif

}  // namespace
}  // namespace exml
