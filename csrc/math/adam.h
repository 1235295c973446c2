// One step of Adam (Kingma and Ba, 2015, Alg. 1) on one pixel, and the clip to its range (Yin 2020, Eq. 16).
#pragma once

#include "math/platform.h"

namespace exml {

// The logarithms of the decay rates give 1 - beta^step without cancellation.
struct AdamRates {
  double beta1, beta2, log_beta1, log_beta2, eps;
};

inline AdamRates adam_rates(double beta1, double beta2, double eps) {
  return {beta1, beta2, std::log(beta1), std::log(beta2), eps};
}

// The factors that are the same for all pixels of a step.
template <typename A>
struct AdamStep {
  A fresh1, beta2, fresh2;       // fresh: 1 - beta
  A rate, root_correction, eps;  // rate: lr / (1 - beta1^step); root_correction: 1 / sqrt(1 - beta2^step)
};

template <typename A>
EXML_HD AdamStep<A> adam_step(const AdamRates& rates, A step, A lr) {
  return {A(1 - rates.beta1),
          A(rates.beta2),
          A(1 - rates.beta2),
          -lr / std::expm1(step * A(rates.log_beta1)),
          A(1) / std::sqrt(-std::expm1(step * A(rates.log_beta2))),
          A(rates.eps)};
}

// The new pixel; m and v are its moments. NaN passes the clip.
template <typename A>
EXML_HD A adam_clip(const AdamStep<A>& step, A x, A grad, A& m, A& v, A low, A high) {
  m += step.fresh1 * (grad - m);
  v = step.beta2 * v + step.fresh2 * grad * grad;
  x -= step.rate * m / (std::sqrt(v) * step.root_correction + step.eps);
  x = x < low ? low : x;
  return x > high ? high : x;
}

}  // namespace exml
