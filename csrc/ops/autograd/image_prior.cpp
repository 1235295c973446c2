#include "ops/image_prior.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd/dispatcher.h"
#include "ops/autograd/once_differentiable.h"

namespace exml {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::tuple<Tensor, Tensor> forward_op(const Tensor& x, int64_t kernel_size, double sigma, bool per_image) {
  static const auto op = find_op<decltype(forward_op)>("exml::_image_prior_forward");
  return op.call(x, kernel_size, sigma, per_image);
}

Tensor backward_op(const Tensor& grads, const Tensor& x, const Tensor& sums, int64_t kernel_size, double sigma,
                   bool per_image) {
  static const auto op = find_op<decltype(backward_op)>("exml::_image_prior_backward");
  return op.call(grads, x, sums, kernel_size, sigma, per_image);
}

struct ImagePrior : torch::autograd::Function<ImagePrior> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, int64_t kernel_size, double sigma, bool per_image) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [losses, sums] = forward_op(x, kernel_size, sigma, per_image);
    ctx->save_for_backward({x, sums});
    ctx->saved_data["kernel_size"] = kernel_size;
    ctx->saved_data["sigma"] = sigma;
    ctx->saved_data["per_image"] = per_image;
    return losses;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor grad = backward_op(grads[0], saved[0], saved[1], ctx->saved_data["kernel_size"].toInt(),
                                    ctx->saved_data["sigma"].toDouble(), ctx->saved_data["per_image"].toBool());
    return {grad, Tensor(), Tensor(), Tensor()};
  }
};

Tensor image_prior_autograd(const Tensor& x, int64_t kernel_size, double sigma, bool per_image) {
  return ImagePrior::apply(x, kernel_size, sigma, per_image);
}

Tensor image_prior_without_autograd(const Tensor& x, int64_t kernel_size, double sigma, bool per_image) {
  return std::get<0>(forward_op(x, kernel_size, sigma, per_image));
}

Tensor backward_autograd(const Tensor& grads, const Tensor& x, const Tensor& sums, int64_t kernel_size, double sigma,
                         bool per_image) {
  return once_differentiable("image_prior", grads, x,
                             [&] { return backward_op(grads, x, sums, kernel_size, sigma, per_image); });
}

TORCH_LIBRARY_IMPL(exml, CompositeExplicitAutograd, m) { m.impl("image_prior", &image_prior_without_autograd); }

TORCH_LIBRARY_IMPL(exml, Autograd, m) {
  m.impl("image_prior", &image_prior_autograd);
  m.impl("_image_prior_backward", &backward_autograd);
}

}  // namespace
}  // namespace exml
