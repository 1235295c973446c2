// One Dirichlet draw in log space: log gamma variates, then their softmax (Nayak 2021, Alg. 1).
#pragma once

#include "math/gamma.h"

namespace exml {

// The logarithm of component k of draw n before normalisation; NaN for a concentration that is not positive and finite.
EXML_HD double log_dirichlet_component(double concentration, uint64_t seed, uint64_t offset, int64_t n, int64_t k,
                                       int64_t classes) {
  if (!(concentration > 0) || concentration - concentration != 0) return NAN;
  Philox random(seed, static_cast<uint64_t>(n * classes + k), offset);
  return log_gamma_variate(concentration, random);
}

}  // namespace exml
