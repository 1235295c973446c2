// What the kernels' host tests share.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "math/bfloat16.h"

namespace exml::testing {

template <typename T>
std::vector<T> random_pixels(size_t count, unsigned seed, double mean = 0, double deviation = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(mean, deviation);
  std::vector<T> values(count);
  for (T& value : values) narrow(Accumulator<T>(normal(random)), value);
  return values;
}

// Of results that were rounded to T.
template <typename T>
constexpr double kTolerance = std::is_same_v<T, double>  ? 1e-11
                              : std::is_same_v<T, float> ? 2e-5
                                                         : 1e-2;

// |value - expected| within the tolerance of T, relative to the largest magnitude at hand.
template <typename T>
void expect_near(double value, double expected, double scale, const char* what) {
  EXPECT_NEAR(value, expected, kTolerance<T> * std::max(1e-30, scale)) << what;
}

using PixelTypes = ::testing::Types<float, double, BFloat16>;

}  // namespace exml::testing
