// The formulas of csrc/math against definitions, known answers and finite differences.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "math/bfloat16.h"
#include "math/dirichlet.h"
#include "math/image_prior.h"
#include "math/moments.h"
#include "math/statistics_distance.h"

namespace exml {
namespace {

TEST(BFloat16Test, RoundsToNearestEven) {
  const auto rounded = [](float x) {
    BFloat16 out;
    narrow(x, out);
    return widen(out);
  };
  EXPECT_EQ(rounded(1.0f), 1.0f);
  EXPECT_EQ(rounded(1.0f + 0x1p-8f), 1.0f);  // halfway, to even
  EXPECT_EQ(rounded(1.0f + 0x1p-7f + 0x1p-8f), 1.0f + 0x1p-6f);
  EXPECT_EQ(rounded(1.0f + 0x1p-8f + 0x1p-20f), 1.0f + 0x1p-7f);
  EXPECT_EQ(rounded(-3.4e38f), -INFINITY);
  EXPECT_EQ(rounded(INFINITY), INFINITY);
  EXPECT_TRUE(std::isnan(rounded(NAN)));
  uint32_t bits = 0x7f800001;  // a NaN whose payload rounding would drop
  float signalling;
  memcpy(&signalling, &bits, sizeof bits);
  EXPECT_TRUE(std::isnan(rounded(signalling)));
  for (uint32_t i = 0; i < 0x10000; ++i) {  // every value survives the round trip
    const BFloat16 value{static_cast<uint16_t>(i)};
    BFloat16 back;
    narrow(widen(value), back);
    if (!std::isnan(widen(value))) {
      ASSERT_EQ(back.bits, value.bits);
    }
  }
}

TEST(MomentsTest, RunsOfAnySplitGiveTheSame) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> draw(50, 2);
  std::vector<double> x(1000);
  double mean = 0, m2 = 0;
  for (double& v : x) mean += (v = draw(random)) / 1000;
  for (const double v : x) m2 += (v - mean) * (v - mean);
  for (const int run : {1, 3, 64, 999, 1000}) {
    Moments<double> total;
    for (int start = 0; start < 1000; start += run) {
      const int end = std::min(1000, start + run);
      double sum = 0, squares = 0;
      for (int i = start; i < end; ++i) {
        sum += x[i] - x[start];
        squares += (x[i] - x[start]) * (x[i] - x[start]);
      }
      total = combine(total, from_shifted_sums<double>(end - start, x[start], sum, squares));
    }
    EXPECT_EQ(total.count, 1000);
    EXPECT_NEAR(total.mean, mean, 1e-12 * 50);
    EXPECT_NEAR(total.m2, m2, 1e-11 * m2);
  }
  EXPECT_TRUE(std::isnan(from_shifted_sums<double>(2, 0, NAN, NAN).m2));
  EXPECT_EQ((combine(Moments<double>{}, Moments<double>{}).count), 0);
}

// The loss of one batch of two channels against given statistics, and its gradient by the formulas.
TEST(StatisticsDistanceTest, GradientIsThatOfTheLoss) {
  std::mt19937_64 random(2);
  std::normal_distribution<double> draw;
  const int channels = 2, count = 6;
  std::vector<double> x(channels * count);
  for (double& v : x) v = draw(random);
  const ChannelStatistics<double> given[2] = {{0.3, 1.4}, {-0.5, 0.6}};
  const auto batch = [&](int c) {
    ChannelStatistics<double> s{0, 0};
    for (int i = 0; i < count; ++i) s.mean += x[c * count + i] / count;
    for (int i = 0; i < count; ++i) s.var += std::pow(x[c * count + i] - s.mean, 2) / count;
    return s;
  };
  for (const auto distance : {Distance::l2, Distance::squared, Distance::gaussian_kl})
    for (const auto moment : {Moment::var, Moment::std}) {
      const auto sums = [&] {
        DistanceSums<double> total;
        for (int c = 0; c < channels; ++c) {
          const auto term = channel_distance(distance, moment, batch(c), given[c]);
          total.mean += term.mean;
          total.moment += term.moment;
        }
        return total;
      };
      for (int c = 0; c < channels; ++c)
        for (int i = 0; i < count; ++i) {
          double& v = x[c * count + i];
          const auto g = pixel_gradient<double>(distance, moment, batch(c), given[c], sums(), count);
          const double formula = g.offset + g.slope * (v - g.mean), saved = v, step = 1e-5;
          v = saved + step;
          const double above = distance_loss(distance, sums());
          v = saved - step;
          const double below = distance_loss(distance, sums());
          v = saved;
          EXPECT_NEAR(formula, (above - below) / (2 * step), 1e-8) << int(distance) << int(moment);
        }
    }
}

TEST(StatisticsDistanceTest, NoNanWhereNothingIsToBeDone) {
  for (const auto moment : {Moment::var, Moment::std})
    for (const auto distance : {Distance::l2, Distance::squared}) {
      const ChannelStatistics<double> s{1, 0};
      const auto g = pixel_gradient<double>(distance, moment, s, s, {}, 5);
      EXPECT_EQ(g.offset, 0);
      EXPECT_EQ(g.slope, 0);
    }
}

TEST(BlurTest, AdjointWeightsAreTheBlurTransposed) {
  for (const int kernel : {1, 3, 5, 15}) {
    const auto window = gaussian_window<double>(kernel, 1.3);
    for (int64_t size = window.radius + 1; size < 20; ++size)
      for (int64_t k = 0; k < size; ++k) {
        std::vector<double> row(size);
        for (int t = 0; t < kernel; ++t) row[reflect(k + t - window.radius, size)] += window.taps[t];
        double total = 0;
        for (int64_t i = 0; i < size; ++i) {
          ASSERT_NEAR(blur_weight(k, i, size, window), row[i], 1e-15) << size << " " << k << " " << i;
          total += row[i];
        }
        ASSERT_NEAR(total, 1, 1e-14);
      }
  }
}

TEST(PriorPullTest, NanAndZero) {
  const PriorPull<double> pull{{1, 1, 1, 1}, {2, 2, 2, 2}, 0, 0};
  EXPECT_EQ(difference_pull(pull, 0, 3.0), 7);
  EXPECT_EQ(difference_pull(pull, 0, -3.0), -7);
  EXPECT_EQ(difference_pull(pull, 0, 0.0), 0);
  EXPECT_TRUE(std::isnan(difference_pull(pull, 0, double(NAN))));
}

// Known answers of Random123's distribution for philox4x32-10.
TEST(PhiloxTest, KnownAnswers) {
  struct Case {
    uint64_t seed, sequence, offset;
    uint32_t words[4];
  };
  const Case cases[] = {
      {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {~0ull, ~0ull, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
  const auto unit = [](uint32_t low, uint32_t high) {
    return (double((uint64_t(high) << 32 | low) >> 12) + 0.5) / 4503599627370496.0;
  };
  for (const auto& c : cases) {
    Philox random(c.seed, c.sequence, c.offset);
    double a, b;
    random.uniform2(a, b);
    EXPECT_EQ(a, unit(c.words[0], c.words[1]));
    EXPECT_EQ(b, unit(c.words[2], c.words[3]));
  }
  // The counter's carry: the draw after offset 2^32 - 1 is the one at 2^32.
  Philox low(1, 2, 0xffffffff), high(1, 2, 0x100000000);
  double a, b, c, d;
  low.uniform2(a, b);
  low.uniform2(a, b);
  high.uniform2(c, d);
  EXPECT_EQ(a, c);
  EXPECT_EQ(b, d);
}

TEST(PhiloxTest, UniformsStayInsideTheUnitInterval) {
  double sum = 0, squares = 0;
  const int draws = 20000;
  for (int i = 0; i < draws; ++i) {
    Philox random(5, i, 0);
    double a, b;
    random.uniform2(a, b);
    ASSERT_TRUE(a > 0 && a < 1 && b > 0 && b < 1);
    sum += a + b;
    squares += a * a + b * b;
  }
  EXPECT_NEAR(sum / (2 * draws), 0.5, 4.5 * std::sqrt(1.0 / 12 / (2 * draws)));
  EXPECT_NEAR(squares / (2 * draws), 1.0 / 3, 4.5 * std::sqrt(4.0 / 45 / (2 * draws)));
}

// E log G = digamma(shape), Var log G = trigamma(shape): moments that tiny shapes have too.
TEST(GammaTest, MomentsOfTheLogarithm) {
  const auto digamma = [](double x) {
    double value = 0;
    for (; x < 30; ++x) value -= 1 / x;
    return value + std::log(x) - 1 / (2 * x) - 1 / (12 * x * x) + 1 / (120 * std::pow(x, 4));
  };
  const auto trigamma = [](double x) {
    double value = 0;
    for (; x < 30; ++x) value += 1 / (x * x);
    return value + 1 / x + 1 / (2 * x * x) + 1 / (6 * x * x * x) - 1 / (30 * std::pow(x, 5));
  };
  const int draws = 40000;
  for (const double shape : {1e-4, 0.01, 0.3, 0.999, 1.0, 1.7, 10.0, 1e4}) {
    double sum = 0, squares = 0, fourth = 0;
    const double mean = digamma(shape), variance = trigamma(shape);
    for (int i = 0; i < draws; ++i) {
      Philox random(9, i, 0);
      const double d = log_gamma_variate(shape, random) - mean;
      sum += d / draws;
      squares += d * d / draws;
      fourth += d * d * d * d / draws;
    }
    EXPECT_NEAR(sum, 0, 4.5 * std::sqrt(variance / draws)) << shape;
    EXPECT_NEAR(squares, variance, 4.5 * std::sqrt((fourth - squares * squares) / draws)) << shape;
  }
}

TEST(DirichletTest, BadConcentrationsAreNan) {
  for (const double bad : {0.0, -1.0, double(NAN), double(INFINITY)})
    EXPECT_TRUE(std::isnan(log_dirichlet_component(bad, 1, 0, 0, 0, 1)));
  EXPECT_TRUE(std::isfinite(log_dirichlet_component(1e-6, 1, 0, 0, 0, 1)));
}

}  // namespace
}  // namespace exml
