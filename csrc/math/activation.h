// Activations that follow a normalisation, and their derivatives, as PyTorch defines both.
#pragma once

#include <type_traits>

#include "math/platform.h"

namespace exml {

enum class Activation { none, relu, relu6, silu, hardswish, leaky_relu, gelu, gelu_tanh, tanh };

#define EXML_FOR_EACH_ACTIVATION(f) \
  f(none) f(relu) f(relu6) f(silu) f(hardswish) f(leaky_relu) f(gelu) f(gelu_tanh) f(tanh)

// Calls f with the activation as a compile-time constant.
template <typename F>
void with_activation(Activation activation, F f) {
  switch (activation) {
#define EXML_CASE(name)  \
  case Activation::name: \
    return f(std::integral_constant<Activation, Activation::name>());
    EXML_FOR_EACH_ACTIVATION(EXML_CASE)
#undef EXML_CASE
  }
}

EXML_HD float tanh(float x) { return std::tanh(x); }
EXML_HD double tanh(double x) { return std::tanh(x); }

template <typename A>
EXML_HD A sigmoid(A x) {
  const A e = std::exp(x < A(0) ? x : -x);
  const A q = A(1) / (A(1) + e);
  return x >= A(0) ? q : e * q;
}

// cdf and density of the standard normal distribution.
template <typename A>
EXML_HD void normal(A x, A& cdf, A& density) {
  cdf = A(0.5) * std::erfc(x * A(-0.70710678118654752440));
  density = A(0.39894228040143267794) * std::exp(A(-0.5) * x * x);
}

#include "math/activation_formulas.h"

// The same for kWidth values, the activation chosen at run time: z becomes act(z), or g act'(z) g.
template <int kWidth, typename A>
EXML_HD void activate(Activation activation, A* z, A slope) {
  switch (activation) {
#define EXML_CASE(name)                                                              \
  case Activation::name:                                                             \
    for (int j = 0; j < kWidth; ++j) z[j] = activate<Activation::name>(z[j], slope); \
    return;
    EXML_FOR_EACH_ACTIVATION(EXML_CASE)
#undef EXML_CASE
  }
}
template <int kWidth, typename A>
EXML_HD void pull_back(Activation activation, const A* z, A* g, A slope) {
  switch (activation) {
#define EXML_CASE(name)                                                                     \
  case Activation::name:                                                                    \
    for (int j = 0; j < kWidth; ++j) g[j] = pull_back<Activation::name>(z[j], g[j], slope); \
    return;
    EXML_FOR_EACH_ACTIVATION(EXML_CASE)
#undef EXML_CASE
  }
}

}  // namespace exml
