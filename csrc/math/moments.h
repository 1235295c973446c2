// Mean and variance in one pass: shifted sums over short runs, combined by the rule of Chan et al. (1979).
#pragma once

#include "math/platform.h"

namespace exml {

template <typename A>
struct Moments {
  A count = 0, mean = 0, m2 = 0;  // m2: sum of squared deviations from the mean

  EXML_HD A variance() const { return m2 / count; }
};

// share: of b in all values; weight: a.count times that.
template <typename A>
EXML_HD Moments<A> combine(const Moments<A>& a, const Moments<A>& b, A share, A weight) {
  const A delta = b.mean - a.mean;
  return {a.count + b.count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * weight};
}
template <typename A>
EXML_HD Moments<A> combine(const Moments<A>& a, const Moments<A>& b) {
  if (a.count == A(0)) return b;
  if (b.count == A(0)) return a;
  const A share = b.count / (a.count + b.count);
  return combine(a, b, share, a.count * share);
}

// Moments of a run from sums of (x - shift) and (x - shift)^2. With a member of the run as the shift, the subtraction
// loses at most a factor `count` in relative accuracy, since that member's own deviation is part of m2.
template <typename A>
EXML_HD Moments<A> from_shifted_sums(A count, A shift, A sum, A sum_of_squares) {
  const A mean = sum / count, m2 = sum_of_squares - sum * mean;
  return {count, shift + mean, m2 < A(0) ? A(0) : m2};
}

}  // namespace exml
