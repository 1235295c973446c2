// bfloat16 storage: the upper half of a float32, rounded to nearest even.
#pragma once

#include <cstring>

#include "math/platform.h"

namespace exml {

struct BFloat16 {
  uint16_t bits;
};

// The type in which sums over T are formed.
template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

EXML_HD float widen(float x) { return x; }
EXML_HD double widen(double x) { return x; }
EXML_HD float widen(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

EXML_HD void narrow(float x, float& out) { out = x; }
EXML_HD void narrow(double x, double& out) { out = x; }
EXML_HD void narrow(float x, BFloat16& out) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  // The rounding carry would turn some NaNs into infinities.
  out.bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace exml
