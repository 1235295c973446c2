#include "ops/cuda/bn_match_kernel.cu"
#include "tests/kernel_checks.h"

namespace exml {
namespace {

using cuda::BNMatchShape;

template <typename T>
struct Result {
  double loss;
  std::vector<T> gradient;
};

template <typename T>
Result<T> run(const std::vector<T>& x, const BNMatchShape& shape, const std::vector<double>& mean,
              const std::vector<double>& var, Distance distance, Moment moment, int splits) {
  using A = Accumulator<T>;
  const std::vector<A> given_mean(mean.begin(), mean.end()), given_var(var.begin(), var.end());
  std::vector<Moments<A>> partial(splits * shape.channels);
  std::vector<A> coefficients(3 * shape.channels, A(NAN));
  A loss = A(NAN), grad = A(1.5);
  std::vector<T> out(x.size());
  for (T& value : out) narrow(A(NAN), value);  // every element must be written
  cuda::bn_match_forward(x.data(), shape, given_mean.data(), given_var.data(), distance, moment, splits, partial.data(),
                         &loss, coefficients.data(), nullptr);
  cuda::bn_match_backward(&grad, x.data(), shape, coefficients.data(), out.data(), nullptr);
  return {double(loss), out};
}

// The same by definition, in double.
template <typename T>
Result<double> by_definition(const std::vector<T>& x, const BNMatchShape& shape, const std::vector<double>& mean,
                             const std::vector<double>& var, Distance distance, Moment moment) {
  const int64_t count = shape.count(), channels = shape.channels;
  const auto index = [&](int64_t c, int64_t i) {
    if (shape.channels_last) return i * channels + c;
    return (i / shape.plane * channels + c) * shape.plane + i % shape.plane;
  };
  std::vector<ChannelStatistics<double>> batch(channels);
  DistanceSums<double> sums;
  for (int64_t c = 0; c < channels; ++c) {
    double total = 0, square = 0;
    for (int64_t i = 0; i < count; ++i) total += widen(x[index(c, i)]);
    for (int64_t i = 0; i < count; ++i) square += std::pow(widen(x[index(c, i)]) - total / count, 2);
    batch[c] = {total / count, square / count};
    const auto term = channel_distance(distance, moment, batch[c], {mean[c], var[c]});
    sums = {sums.mean + term.mean, sums.moment + term.moment};
  }
  Result<double> result{distance_loss(distance, sums), std::vector<double>(x.size())};
  for (int64_t c = 0; c < channels; ++c) {
    const auto g = pixel_gradient<double>(distance, moment, batch[c], {mean[c], var[c]}, sums, double(count));
    for (int64_t i = 0; i < count; ++i)
      result.gradient[index(c, i)] = 1.5 * (g.offset + g.slope * (widen(x[index(c, i)]) - g.mean));
  }
  return result;
}

template <typename T>
class BNMatchKernel : public ::testing::Test {};
TYPED_TEST_SUITE(BNMatchKernel, exml::testing::PixelTypes);

TYPED_TEST(BNMatchKernel, MatchesTheDefinition) {
  using T = TypeParam;
  const BNMatchShape shapes[] = {{2, 3, 35, false},  {5, 33, 1, true},  {7, 40, 9, true},  {3, 5, 300, false},
                                 {1, 1, 4, false},   {2, 1, 700, true}, {9, 270, 1, true}, {2, 7, 1, false},
                                 {600, 2, 3, false}, {2, 270, 2, false}};
  for (const BNMatchShape& shape : shapes)
    for (const int splits : {1, 3})
      for (const Distance distance : {Distance::l2, Distance::squared, Distance::gaussian_kl}) {
        const auto x = exml::testing::random_pixels<T>(shape.count() * shape.channels, 1, 2, 3);
        std::vector<double> mean, var;
        for (int64_t c = 0; c < shape.channels; ++c) {
          mean.push_back(std::sin(double(c)));
          var.push_back(1 + std::cos(double(c)) / 2);
        }
        const Moment moment = splits == 1 ? Moment::var : Moment::std;
        const auto ours = run(x, shape, mean, var, distance, moment, splits);
        const auto expected = by_definition(x, shape, mean, var, distance, moment);
        EXPECT_NEAR(ours.loss, expected.loss, (std::is_same_v<T, double> ? 1e-11 : 2e-5) * std::abs(expected.loss));
        double largest = 0;
        for (const double g : expected.gradient) largest = std::max(largest, std::abs(g));
        for (size_t i = 0; i < x.size(); ++i)
          exml::testing::expect_near<T>(widen(ours.gradient[i]), expected.gradient[i], largest, "gradient");
      }
}

TEST(BNMatchKernel, UnalignedPixels) {
  const BNMatchShape shape{3, 5, 7, false};
  const auto padded = exml::testing::random_pixels<float>(106, 4);
  const std::vector<float> x(padded.begin() + 1, padded.end());
  const std::vector<float> coefficients = {1, 2, 3, 4, 5, .1f, .2f, .3f, .4f, .5f, 0, 1, 2, 3, 4};
  std::vector<float> out(106, NAN);
  const float grad = 2;
  cuda::bn_match_backward(&grad, padded.data() + 1, shape, coefficients.data(), out.data() + 1, nullptr);
  EXPECT_TRUE(std::isnan(out[0]));
  for (int i = 0; i < 105; ++i) {
    const int c = i / 7 % 5;
    EXPECT_NEAR(out[i + 1], 2 * (coefficients[c] + coefficients[5 + c] * (x[i] - coefficients[10 + c])), 1e-5);
  }
}

TEST(BNMatchKernel, NoCancellationFarFromZero) {
  const BNMatchShape shape{16, 4, 196, false};
  auto x = exml::testing::random_pixels<float>(shape.count() * 4, 3, 1e4, 1);
  const std::vector<double> mean(4, 1e4), var(4, 0);
  EXPECT_NEAR(run(x, shape, mean, var, Distance::l2, Moment::var, 2).loss,
              by_definition(x, shape, mean, var, Distance::l2, Moment::var).loss, 1e-3);
}

TEST(BNMatchKernel, NaNPropagates) {
  for (const bool channels_last : {false, true}) {
    const BNMatchShape shape{4, 6, 50, channels_last};
    auto x = exml::testing::random_pixels<float>(1200, 3);
    x[700] = NAN;
    const auto result =
        run(x, shape, std::vector<double>(6, 0), std::vector<double>(6, 1), Distance::l2, Moment::var, 2);
    EXPECT_TRUE(std::isnan(result.loss));
    EXPECT_TRUE(std::isnan(result.gradient[700]));
  }
}

TEST(BNMatchKernel, AConstantChannelThatMatchesHasNoGradient) {
  const std::vector<float> x(100, 3.0f);
  for (const Moment moment : {Moment::var, Moment::std}) {
    const auto result = run(x, {10, 2, 5, false}, {3, 3}, {0, 0}, Distance::l2, moment, 1);
    EXPECT_EQ(result.loss, 0);
    for (const float g : result.gradient) EXPECT_EQ(g, 0);
  }
}

TEST(BNMatchKernel, SplitsFillTheDevice) {
  EXPECT_EQ(cuda::bn_match_splits({1, 64, 10, false}, 132), 1);
  EXPECT_EQ(cuda::bn_match_splits({64, 64, 1024, false}, 132), 9);
  EXPECT_EQ(cuda::bn_match_splits({64, 64, 1024, true}, 132), 64);
}

}  // namespace
}  // namespace exml
