#include "ops/dirichlet_targets.h"

#include "ops/checks.h"
#include "ops/schema.h"

namespace exml {
namespace {

void check(const Tensor& similarity, const Tensor& classes, const Tensor& betas, const Tensor& seed) {
  const char* op = "dirichlet_targets";
  EXML_CHECK_VALUE(similarity.scalar_type() == ScalarType::Float || similarity.scalar_type() == ScalarType::Double, op,
                   ": similarity must be float32 or float64, got ", similarity.scalar_type());
  EXML_CHECK_VALUE(similarity.dim() == 2 && similarity.size(0) == similarity.size(1) && similarity.numel() > 0, op,
                   ": similarity must have shape (K, K) and not be empty, got ", similarity.sizes());
  EXML_CHECK_VALUE(classes.scalar_type() == ScalarType::Long, op, ": classes must be int64, got ",
                   classes.scalar_type());
  EXML_CHECK_VALUE(classes.dim() == 1 && classes.numel() > 0, op,
                   ": classes must have shape (N,) and not be empty, got ", classes.sizes());
  EXML_CHECK_VALUE(is_floating_point(betas), op, ": betas must be floating point, got ", betas.scalar_type());
  EXML_CHECK_VALUE(equal(betas.sizes(), classes.sizes()), op, ": betas must have the shape of classes, ",
                   classes.sizes(), ", got ", betas.sizes());
  check_device(op, "classes", classes, "similarity", similarity);
  check_device(op, "betas", betas, "similarity", similarity);
  EXML_CHECK_VALUE(seed.scalar_type() == ScalarType::Long && seed.dim() == 0, op,
                   ": seed must be an int64 scalar, got ", seed.scalar_type(), " of shape ", seed.sizes());
  check_device(op, "seed", seed, "similarity", similarity);
}

}  // namespace

DirichletTargets dirichlet_targets_arguments(const Tensor& similarity, const Tensor& classes, const Tensor& betas,
                                             const Tensor& seed) {
  check(similarity, classes, betas, seed);
  return {as_contiguous(similarity), as_contiguous(classes), as_contiguous(as_type(betas, similarity.scalar_type())),
          seed};
}

EXML_SCHEMAS(m) { m.def("_dirichlet_targets(Tensor similarity, Tensor classes, Tensor betas, Tensor seed) -> Tensor"); }

}  // namespace exml
