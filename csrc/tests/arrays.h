// Helpers of the kernel tests: random arrays in each dtype, and their comparison with a naive double computation.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "math/bfloat16.h"

namespace exml::tests {

using PixelTypes = ::testing::Types<float, double, BFloat16>;

// Relative rounding error of results in the accumulator's type, and of values stored as T.
template <typename T>
constexpr double kSumError = sizeof(Accumulator<T>) == 8 ? 1e-12 : 2e-5;
template <typename T>
constexpr double kStoreError = sizeof(T) == 8   ? 1e-12
                               : sizeof(T) == 4 ? 2e-5
                                                : 1e-2;

// Inputs of elementary functions, as many as the widest vector has lanes: close to `start`, and ever closer to zero.
inline std::vector<float> around(float start) {
  std::vector<float> values(16);
  for (int i = 0; i < 16; ++i) values[i] = i < 8 ? start + 0.0001f * i : start * std::pow(0.1f, i - 7);
  return values;
}

template <typename T>
T stored(double value) {
  T result;
  narrow(Accumulator<T>(value), result);
  return result;
}

template <typename T>
std::vector<T> normal(int64_t size, double mean, double deviation, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> draw(mean, deviation);
  std::vector<T> values(size);
  for (T& value : values) value = stored<T>(draw(random));
  return values;
}

// Memory that no kernel wrote yet: NaN.
template <typename T>
std::vector<T> unwritten(int64_t size) {
  return std::vector<T>(size, stored<T>(NAN));
}

// error: bound on |got - wanted| relative to the largest |wanted|.
template <typename T>
void expect_close(const std::vector<T>& got, const std::vector<double>& wanted, double error, const std::string& what) {
  ASSERT_EQ(got.size(), wanted.size()) << what;
  double scale = 0;
  for (const double value : wanted) scale = std::fmax(scale, std::fabs(value));
  for (size_t i = 0; i < got.size(); ++i) {
    const double value = widen(got[i]);
    if (std::isnan(wanted[i]) ? std::isnan(value) : std::fabs(value - wanted[i]) <= error * scale) continue;
    FAIL() << what << ": " << value << " instead of " << wanted[i] << " at " << i << " of " << got.size();
  }
}

}  // namespace exml::tests
