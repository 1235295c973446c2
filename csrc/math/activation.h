// Activations that follow a normalisation, and their derivatives, as PyTorch defines both.
#pragma once

#include <type_traits>

#include "math/platform.h"

namespace exml {

enum class Activation { none, relu, relu6, silu, hardswish, leaky_relu, gelu, gelu_tanh, tanh };

// Calls f with the activation as a compile-time constant.
template <typename F>
void with_activation(Activation activation, F f) {
  switch (activation) {
#define EXML_CASE(name)  \
  case Activation::name: \
    return f(std::integral_constant<Activation, Activation::name>())
    EXML_CASE(none);
    EXML_CASE(relu);
    EXML_CASE(relu6);
    EXML_CASE(silu);
    EXML_CASE(hardswish);
    EXML_CASE(leaky_relu);
    EXML_CASE(gelu);
    EXML_CASE(gelu_tanh);
    EXML_CASE(tanh);
#undef EXML_CASE
  }
}

EXML_HD float tanh(float x) { return std::tanh(x); }
EXML_HD double tanh(double x) { return std::tanh(x); }

template <typename A>
EXML_HD A sigmoid(A x) {
  const A e = std::exp(x < A(0) ? x : -x);
  return (x >= A(0) ? A(1) : e) / (A(1) + e);
}

// cdf and density of the standard normal distribution.
template <typename A>
EXML_HD void normal(A x, A& cdf, A& density) {
  cdf = A(0.5) * std::erfc(x * A(-0.70710678118654752440));
  density = A(0.39894228040143267794) * std::exp(A(-0.5) * x * x);
}

#include "math/activation_formulas.h"

}  // namespace exml
