// Joins the checks of an op (csrc/ops/<op>.cpp) to the kernel of a backend (csrc/ops/cpu, csrc/ops/cuda).
#pragma once

#include <torch/csrc/stable/library.h>

namespace exml {

template <auto checks, auto kernel>
struct CheckedKernel;

template <typename Arguments, typename... Parameters, Arguments (*checks)(Parameters...), auto kernel>
struct CheckedKernel<checks, kernel> {
  static auto run(Parameters... parameters) { return kernel(checks(parameters...)); }
};

// The function that a backend registers with the dispatcher. It has the parameters of `checks`, which returns the
// arguments of `kernel`.
template <auto checks, auto kernel>
constexpr auto checked = TORCH_BOX((&CheckedKernel<checks, kernel>::run));

}  // namespace exml
