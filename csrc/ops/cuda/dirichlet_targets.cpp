#include "ops/dirichlet_targets.h"

#include "ops/backend.h"
#include "ops/cuda/context.h"
#include "ops/cuda/dirichlet_targets_kernel.h"

namespace exml {
namespace {

Tensor dirichlet_targets(const DirichletTargets& arguments) {
  const auto& [similarity, classes, betas, seed] = arguments;
  const cuda::Context context(similarity);
  const int64_t rows = classes.size(0), count = similarity.size(1);
  Tensor out = context.empty({rows, count}, similarity.scalar_type());
  const Tensor scratch = context.empty({rows, count}, ScalarType::Double);
  const cuda::RandomState random{0, 0, seed.const_data_ptr<int64_t>(), nullptr};
  dispatch_statistics(similarity, [&](auto* similarities) {
    using A = PixelOf<decltype(similarities)>;
    cuda::dirichlet_targets(similarities, classes.const_data_ptr<int64_t>(), betas.const_data_ptr<A>(), rows, count,
                            random, scratch.mutable_data_ptr<double>(), out.mutable_data_ptr<A>(), context.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CUDA, m) {
  m.impl("_dirichlet_targets", checked<&dirichlet_targets_arguments, &dirichlet_targets>);
}

}  // namespace
}  // namespace exml
