#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "math/bfloat16.h"
#include "math/dirichlet.h"
#include "math/image_prior.h"
#include "math/moments.h"
#include "math/statistics_distance.h"

namespace exml {
namespace {

TEST(BFloat16, RoundsToNearestEvenAndKeepsNaN) {
  const auto through = [](float x) {
    BFloat16 b;
    narrow(x, b);
    return widen(b);
  };
  EXPECT_EQ(through(1.0f), 1.0f);
  EXPECT_EQ(through(1.0f + 0x1p-8f), 1.0f);           // halfway, to even
  EXPECT_EQ(through(1.0f + 3 * 0x1p-8f), 1.015625f);  // halfway, to even
  EXPECT_NEAR(through(-3.0e38f), -3.0e38f, 3.0e38f * 0x1p-9f);
  EXPECT_TRUE(std::isinf(through(3.4e38f)));
  EXPECT_TRUE(std::isnan(through(std::numeric_limits<float>::quiet_NaN())));
  uint32_t all_ones = 0x7fffffff;  // a NaN whose carry would wrap
  float nan;
  memcpy(&nan, &all_ones, 4);
  EXPECT_TRUE(std::isnan(through(nan)));
}

TEST(Moments, CombineIsOrderFreeAndExactFarFromZero) {
  std::mt19937 random(0);
  std::normal_distribution<double> normal(1e4, 1);
  Moments<double> total;
  double sum = 0;
  std::vector<float> all;
  for (int run = 0; run < 40; ++run) {
    const int count = 1 + run * 7 % 64;
    float shift = 0, s1 = 0, s2 = 0;
    for (int i = 0; i < count; ++i) {
      const float x = static_cast<float>(normal(random));
      if (i == 0) shift = x;
      s1 += x - shift;
      s2 += (x - shift) * (x - shift);
      all.push_back(x);
      sum += x;
    }
    total = combine(total, from_shifted_sums<double>(count, shift, s1, s2));
  }
  const double mean = sum / all.size();
  double m2 = 0;
  for (const float x : all) m2 += (x - mean) * (x - mean);
  EXPECT_EQ(total.count, double(all.size()));
  EXPECT_NEAR(total.mean, mean, 1e-6);
  EXPECT_NEAR(total.variance(), m2 / all.size(), 1e-5);
}

TEST(StatisticsDistance, PixelGradientIsTheDerivative) {
  const std::vector<double> x = {0.3, -1.2, 2.5, 0.9, 1.1};
  const ChannelStatistics<double> given{0.4, 1.7};
  const auto loss = [&](const std::vector<double>& v, Distance distance, Moment moment) {
    Moments<double> m;
    for (const double e : v) m = combine(m, Moments<double>{1, e, 0});
    return distance_loss(distance, channel_distance(distance, moment, {m.mean, m.variance()}, given));
  };
  for (const Distance distance : {Distance::l2, Distance::squared, Distance::gaussian_kl})
    for (const Moment moment : {Moment::var, Moment::std}) {
      Moments<double> m;
      for (const double e : x) m = combine(m, Moments<double>{1, e, 0});
      const ChannelStatistics<double> batch{m.mean, m.variance()};
      const auto sums = channel_distance(distance, moment, batch, given);
      const auto g = pixel_gradient<double>(distance, moment, batch, given, sums, double(x.size()));
      for (size_t i = 0; i < x.size(); ++i) {
        auto up = x, down = x;
        up[i] += 1e-6;
        down[i] -= 1e-6;
        const double numeric = (loss(up, distance, moment) - loss(down, distance, moment)) / 2e-6;
        EXPECT_NEAR(g.offset + g.slope * (x[i] - g.mean), numeric, 1e-6);
      }
    }
}

TEST(ImagePrior, BlurWeightsAreTheReflectedBlur) {
  for (const int64_t size : {8, 9, 20}) {
    const auto window = gaussian_window<double>(7, 1.3);
    for (int64_t k = 0; k < size; ++k) {
      std::vector<double> row(size);
      for (int t = -window.radius; t <= window.radius; ++t) row[reflect(k + t, size)] += window.taps[t + window.radius];
      double total = 0;
      for (int64_t i = 0; i < size; ++i) {
        EXPECT_NEAR(blur_weight(k, i, size, window), row[i], 1e-15);
        total += row[i];
      }
      EXPECT_NEAR(total, 1, 1e-12);
    }
  }
}

TEST(Philox, KnownAnswers) {
  // Salmon et al.'s test vectors of Philox4x32-10, through the two uniforms that a block gives.
  const auto unit = [](uint32_t low, uint32_t high) {
    return (double(((uint64_t(high) << 32) | low) >> 12) + 0.5) * 0x1p-52;
  };
  double a, b;
  Philox zero(0, 0, 0);
  zero.uniform2(a, b);
  EXPECT_EQ(a, unit(0x6627e8d5, 0xe169c58d));
  EXPECT_EQ(b, unit(0xbc57ac4c, 0x9b00dbd8));
  Philox ones(~0ull, ~0ull, ~0ull);
  ones.uniform2(a, b);
  EXPECT_EQ(a, unit(0x408f276d, 0x41c83b0e));
  EXPECT_EQ(b, unit(0xa20bc7c6, 0x6d5451fd));
}

TEST(Gamma, MomentsAndLogMoments) {
  // E G = shape; E log G = digamma(shape), which sees the small values that the mean does not.
  const std::vector<std::pair<double, double>> digamma = {
      {0.01, -100.56088545}, {0.5, -1.96351003}, {1.0, -0.57721566}, {3.5, 1.10315664}, {20.0, 2.97052399}};
  for (const auto& [shape, expected] : digamma) {
    const int count = 200000;
    double mean = 0, log_mean = 0, log_square = 0;
    for (int i = 0; i < count; ++i) {
      Philox random(7, i, 0);
      const double value = log_gamma_variate(shape, random);
      mean += std::exp(value) / count;
      log_mean += value / count;
      log_square += value * value / count;
    }
    EXPECT_NEAR(mean, shape, 5 * std::sqrt(shape / count) + 1e-12) << shape;
    EXPECT_NEAR(log_mean, expected, 5 * std::sqrt((log_square - log_mean * log_mean) / count)) << shape;
  }
}

TEST(Dirichlet, BadConcentrationIsNaN) {
  for (const double bad : {0.0, -1.0, double(NAN), double(INFINITY)})
    EXPECT_TRUE(std::isnan(log_dirichlet_component(bad, 1, 0, 0, 0, 3)));
  EXPECT_FALSE(std::isnan(log_dirichlet_component(1e-5, 1, 0, 0, 0, 3)));
}

}  // namespace
}  // namespace exml
