#include "ops/winograd_conv2d.h"

#include <torch/library.h>

#include "ops/backend.h"
#include "ops/checks.h"

namespace exml {

using at::Tensor;

const Tensor& winograd_weights_arguments(const Tensor& weight) {
  check_pixels("winograd_weights", "weight", weight);
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3,
                    "winograd_weights: weight must have shape (K, C, 3, 3), got ", weight.sizes());
  check_no_grad("winograd_weights", "weight", weight);
  return weight;
}

TORCH_LIBRARY_FRAGMENT(exml, m) { m.def("winograd_weights(Tensor weight) -> Tensor"); }

}  // namespace exml
