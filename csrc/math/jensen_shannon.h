// Jensen-Shannon divergence of two distributions, given by their logarithms (Yin 2020, Eq. 8).
#pragma once

#include "math/platform.h"

namespace exml {

// log((1 + e^x) / 2) / 2 for x <= 0.
template <typename A>
EXML_HD A half_log_mean_exp(A x) {
  return std::log1p(std::expm1(x) / A(2)) / A(2);
}

#include "math/jensen_shannon_formulas.h"

}  // namespace exml
