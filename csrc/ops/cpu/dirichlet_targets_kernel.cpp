#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "math/dirichlet.h"
#include "ops/backend.h"
#include "ops/dirichlet_targets.h"
#include "ops/dispatch.h"

namespace exml {
namespace {

using at::Tensor;

template <typename A>
void draw(const A* similarities, const Tensor& classes, const Tensor& betas, uint64_t seed, Tensor& out) {
  const int64_t rows = out.size(0), count = out.size(1);
  const A* scales = betas.const_data_ptr<A>();
  const int64_t* labels = classes.const_data_ptr<int64_t>();
  A* targets = out.data_ptr<A>();
  at::parallel_for(0, rows, std::max<int64_t>(1, 128 / count), [&](int64_t begin, int64_t end) {
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
  check_dirichlet_values(arguments);
  const auto& [similarity, classes, betas, generator] = arguments;
  auto* source = at::get_generator_or_default<at::CPUGeneratorImpl>(generator, at::detail::getDefaultCPUGenerator());
  uint64_t seed;
  {
    std::lock_guard<std::mutex> lock(source->mutex_);
    seed = source->random64();
  }
  Tensor out = at::empty({classes.size(0), similarity.size(1)}, similarity.options());
  dispatch_statistics(similarity, [&](auto* similarities) { draw(similarities, classes, betas, seed, out); });
  return out;
}

TORCH_LIBRARY_IMPL(exml, CPU, m) {
  m.impl("dirichlet_targets", checked<&dirichlet_targets_arguments, &dirichlet_targets>);
}

}  // namespace
}  // namespace exml
