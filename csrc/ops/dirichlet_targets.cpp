#include "ops/dirichlet_targets.h"

#include <torch/library.h>

#include "ops/checks.h"

namespace exml {
namespace {

using at::Tensor;

void check(const Tensor& similarity, const Tensor& classes, const Tensor& betas) {
  const char* op = "dirichlet_targets";
  TORCH_CHECK_VALUE(similarity.scalar_type() == at::kFloat || similarity.scalar_type() == at::kDouble, op,
                    ": similarity must be float32 or float64, got ", similarity.scalar_type());
  TORCH_CHECK_VALUE(similarity.dim() == 2 && similarity.size(0) == similarity.size(1) && similarity.numel() > 0, op,
                    ": similarity must have shape (K, K) and not be empty, got ", similarity.sizes());
  TORCH_CHECK_VALUE(classes.scalar_type() == at::kLong, op, ": classes must be int64, got ", classes.scalar_type());
  TORCH_CHECK_VALUE(classes.dim() == 1 && classes.numel() > 0, op,
                    ": classes must have shape (N,) and not be empty, got ", classes.sizes());
  TORCH_CHECK_VALUE(betas.is_floating_point(), op, ": betas must be floating point, got ", betas.scalar_type());
  TORCH_CHECK_VALUE(betas.sizes() == classes.sizes(), op, ": betas must have the shape of classes, ", classes.sizes(),
                    ", got ", betas.sizes());
  check_device(op, "classes", classes, "similarity", similarity);
  check_device(op, "betas", betas, "similarity", similarity);
}

}  // namespace

void check_dirichlet_values(const DirichletTargets& arguments) {
  const auto& [similarity, classes, betas, generator] = arguments;
  const char* op = "dirichlet_targets";
  const auto positive = [](const Tensor& t) { return t.gt(0).logical_and(t.isfinite()).all().item<bool>(); };
  TORCH_CHECK_VALUE(positive(similarity), op, ": similarity must be positive and finite everywhere, got values from ",
                    similarity.min().item<double>(), " to ", similarity.max().item<double>());
  TORCH_CHECK_VALUE(positive(betas), op, ": betas must be positive and finite, got values from ",
                    betas.min().item<double>(), " to ", betas.max().item<double>());
  const int64_t low = classes.min().item<int64_t>(), high = classes.max().item<int64_t>();
  TORCH_CHECK_INDEX(low >= 0 && high < similarity.size(0), op, ": classes must be in [0, ", similarity.size(0),
                    "), got values from ", low, " to ", high);
}

DirichletTargets dirichlet_targets_arguments(const Tensor& similarity, const Tensor& classes, const Tensor& betas,
                                             const std::optional<at::Generator>& generator) {
  check(similarity, classes, betas);
  return {similarity.contiguous(), classes.contiguous(), betas.to(similarity.scalar_type()).contiguous(), generator};
}

TORCH_LIBRARY_FRAGMENT(exml, m) {
  m.def("dirichlet_targets(Tensor similarity, Tensor classes, Tensor betas, Generator? generator=None) -> Tensor",
        {at::Tag::nondeterministic_seeded});
}

}  // namespace exml
