// The activations against their definitions in double, and the vectors' elementary functions of every instruction set.
#include "math/activation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "ops/cpu/capability.cpp"
#include "tests/arrays.h"

namespace exml {
namespace {

double defined(Activation activation, double z, double slope) {
  switch (activation) {
    case Activation::none:
      return z;
    case Activation::relu:
      return std::max(z, 0.0);
    case Activation::relu6:
      return std::clamp(z, 0.0, 6.0);
    case Activation::silu:
      return z / (1 + std::exp(-z));
    case Activation::hardswish:
      return z * std::clamp(z + 3, 0.0, 6.0) / 6;
    case Activation::leaky_relu:
      return z > 0 ? z : slope * z;
    case Activation::gelu:
      return z * (1 + std::erf(z / std::sqrt(2.0))) / 2;
    case Activation::gelu_tanh:
      return z * (1 + std::tanh(std::sqrt(2 / M_PI) * (z + 0.044715 * z * z * z))) / 2;
    case Activation::tanh:
      return std::tanh(z);
  }
  return NAN;
}

constexpr Activation kActivations[] = {
#define EXML_NAME(name) Activation::name,
    EXML_FOR_EACH_ACTIVATION(EXML_NAME)
#undef EXML_NAME
};

TEST(ActivationTest, ValuesAndDerivatives) {
  const double slope = 0.1, step = 1e-6;
  for (const auto activation : kActivations)
    for (double x = -12.0005; x < 12; x += 0.01) {
      double z = x, g = 2;
      float narrow_z = static_cast<float>(x), narrow_g = 2;
      const double derivative =
          (defined(activation, x + step, slope) - defined(activation, x - step, slope)) / (2 * step);
      pull_back<1>(activation, &z, &g, slope);
      pull_back<1>(activation, &narrow_z, &narrow_g, static_cast<float>(slope));
      EXPECT_NEAR(g, 2 * derivative, 1e-8) << int(activation) << " at " << x;
      EXPECT_NEAR(narrow_g, g, 4e-6) << int(activation) << " at " << x;
      activate<1>(activation, &z, slope);
      activate<1>(activation, &narrow_z, static_cast<float>(slope));
      EXPECT_NEAR(z, defined(activation, x, slope), 1e-14) << int(activation) << " at " << x;
      EXPECT_NEAR(narrow_z, z, 2e-6) << int(activation) << " at " << x;
    }
}

TEST(ActivationTest, DerivativesAtTheKinks) {
  const auto derivative = [](Activation activation, double z) {
    double g = 1;
    pull_back<1>(activation, &z, &g, 0.1);
    return g;
  };
  EXPECT_EQ(derivative(Activation::relu, 0), 0);
  EXPECT_EQ(derivative(Activation::relu6, 0), 0);
  EXPECT_EQ(derivative(Activation::relu6, 6), 0);
  EXPECT_EQ(derivative(Activation::leaky_relu, 0), 0.1);
  EXPECT_EQ(derivative(Activation::hardswish, -3), 0);
  EXPECT_EQ(derivative(Activation::hardswish, 3), 1);
}

TEST(ActivationTest, FarOutAndNan) {
  for (const auto activation : kActivations)
    for (const float far : {1e4f, 1e30f, INFINITY}) {
      float z = far, g = 1, down = 1;
      const float below = -far;
      pull_back<1>(activation, &z, &g, 0.1f);
      pull_back<1>(activation, &below, &down, 0.1f);
      EXPECT_TRUE(std::isfinite(g) && std::isfinite(down)) << int(activation);
      activate<1>(activation, &z, 0.1f);
      EXPECT_FLOAT_EQ(z, activation == Activation::relu6  ? 6
                         : activation == Activation::tanh ? 1
                                                          : far)
          << int(activation);
      z = NAN;
      activate<1>(activation, &z, 0.1f);
      EXPECT_TRUE(std::isnan(z)) << int(activation);
    }
}

}  // namespace
}  // namespace exml

#define EXML_SIMD_SOURCE "tests/elementary_simd_check.h"
#include "ops/cpu/for_each_capability.h"

namespace exml {
namespace {

// Largest errors of float32 vectors against double, over [-20, 20]: of tanh and sigmoid in units in the last place, of
// the normal distribution absolute.
void check(const std::vector<double>& errors) {
  EXPECT_LT(errors[0], 4) << "tanh";
  EXPECT_LT(errors[1], 5) << "sigmoid";
  EXPECT_LT(errors[2], 2e-7) << "normal cdf";
  EXPECT_LT(errors[3], 1e-7) << "normal density";
  EXPECT_EQ(errors[4], 0) << "infinities and NaN";
}

TEST(ElementarySimd, FewUlp) {
  check(cpu::baseline::elementary_errors());
#if EXML_CPU_VARIANTS
  if (cpu::capability() >= cpu::Capability::avx2) check(cpu::avx2::elementary_errors());
  if (cpu::capability() >= cpu::Capability::avx512) check(cpu::avx512::elementary_errors());
#endif
}

}  // namespace
}  // namespace exml
