#include <algorithm>
#include <vector>

#include "math/dirichlet.h"
#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/dirichlet_targets.h"
#include "ops/dispatch.h"

namespace exml {
namespace {

template <typename A>
void draw(const A* similarities, const Tensor& classes, const Tensor& betas, uint64_t seed, Tensor& out) {
  const int64_t rows = out.size(0), count = out.size(1);
  const A* scales = betas.const_data_ptr<A>();
  const int64_t* labels = classes.const_data_ptr<int64_t>();
  A* targets = out.mutable_data_ptr<A>();
  parallel_for(0, rows, std::max<int64_t>(1, 128 / count), [&](int64_t begin, int64_t end) {
    std::vector<double> row(count);
    for (int64_t n = begin; n < end; ++n) {
      double top = -INFINITY, total = 0;
      for (int64_t k = 0; k < count; ++k) {
        const double concentration = double(scales[n]) * double(similarities[labels[n] * count + k]);
        row[k] = log_dirichlet_component(concentration, seed, 0, n, k, count);
        top = row[k] > top ? row[k] : top;
      }
      for (double& value : row) total += value = std::exp(value - top);
      for (int64_t k = 0; k < count; ++k) targets[n * count + k] = static_cast<A>(row[k] / total);
    }
  });
}

Tensor dirichlet_targets(const DirichletTargets& arguments) {
  const auto& [similarity, classes, betas, seed] = arguments;
  const int64_t rows = classes.size(0), count = similarity.size(1);
  const int64_t* labels = classes.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < rows; ++n)
    EXML_CHECK_INDEX(labels[n] >= 0 && labels[n] < count, "dirichlet_targets: classes must be in [0, ", count,
                     "), got ", labels[n], " at row ", n);
  Tensor out = empty({rows, count}, similarity.scalar_type(), similarity);
  const auto key = static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
  dispatch_statistics(similarity, [&](auto* similarities) { draw(similarities, classes, betas, key, out); });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CPU, m) {
  m.impl("_dirichlet_targets", checked<&dirichlet_targets_arguments, &dirichlet_targets>);
}

}  // namespace
}  // namespace exml
