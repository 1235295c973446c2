// Logarithm of a gamma variate, exact for shapes so small that the variate itself underflows.
#pragma once

#include "math/philox.h"

namespace exml {

// Philox blocks that one variate may use: one for the boost and two a proposal.
constexpr int kGammaProposals = 63, kGammaBlocks = 2 * kGammaProposals + 2;

// cos(2 pi turns). On the device cos itself would need local memory, for the reduction of huge angles.
EXML_HD double cos_turns(double turns) {
#ifdef __CUDA_ARCH__
  return cospi(2 * turns);
#else
  return std::cos(6.283185307179586 * turns);
#endif
}

// Marsaglia and Tsang (2000) for shapes of at least 1. For smaller ones G(a) = G(a + 1) * U^(1/a), in logarithms.
// A proposal is accepted with probability above 0.95, so that running out of them (1e-82) does not happen.
EXML_HD double log_gamma_variate(double shape, Philox& random) {
  double boost, accept, u, v;
  random.uniform2(boost, accept);
  const bool small = shape < 1;
  const double d = (small ? shape + 1 : shape) - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  double variate = d;
  for (int i = 0; i < kGammaProposals; ++i) {
    random.uniform2(u, v);
    const double normal = std::sqrt(-2 * std::log(u)) * cos_turns(v);
    const double root = 1 + c * normal, cube = root * root * root, square = normal * normal;
    // The first condition implies the second one (their sec. 4), and spares its logarithms nearly always.
    if (root > 0 && (accept < 1 - 0.0331 * square * square ||
                     std::log(accept) < 0.5 * square + d - d * cube + d * std::log(cube))) {
      variate = d * cube;
      break;
    }
    random.uniform2(accept, u);
  }
  return small ? std::log(variate) + std::log(boost) / shape : std::log(variate);
}

}  // namespace exml
