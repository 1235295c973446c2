#include "ops/cuda/bn_match_kernel.cu"
#include "tests/arrays.h"

namespace exml::cuda {
namespace {

using namespace exml::tests;

constexpr int kMultiprocessors = 3;
constexpr Distance kDistances[] = {Distance::l2, Distance::squared, Distance::gaussian_kl};
constexpr Moment kMoments[] = {Moment::var, Moment::std};

template <typename T>
struct Result {
  Accumulator<T> loss;
  std::vector<Accumulator<T>> coefficients;
  std::vector<T> grad;
};

template <typename T>
Result<T> run(const T* x, const ChannelShape& shape, const std::vector<Accumulator<T>>& mean,
              const std::vector<Accumulator<T>>& var, Distance distance, Moment moment, Accumulator<T> grad) {
  using A = Accumulator<T>;
  Result<T> result{A(NAN), unwritten<A>(3 * shape.channels), unwritten<T>(shape.channels * shape.count())};
  std::vector<double> workspace(bn_match_workspace(x, shape, kMultiprocessors) / sizeof(double) + 1, NAN);
  bn_match_forward(x, shape, mean.data(), var.data(), distance, moment, kMultiprocessors, workspace.data(),
                   &result.loss, result.coefficients.data(), nullptr);
  bn_match_backward(&grad, x, shape, result.coefficients.data(), kMultiprocessors, result.grad.data(), nullptr);
  return result;
}

int64_t place(const ChannelShape& s, int64_t n, int64_t c, int64_t p) {
  return s.channels_last ? (n * s.plane + p) * s.channels + c : (n * s.channels + c) * s.plane + p;
}

template <typename T>
std::vector<ChannelStatistics<double>> naive_statistics(const T* x, const ChannelShape& s) {
  std::vector<ChannelStatistics<double>> statistics(s.channels);
  const auto sum = [&](int64_t c, auto f) {
    double total = 0;
    for (int64_t n = 0; n < s.batch; ++n)
      for (int64_t p = 0; p < s.plane; ++p) total += f(double(widen(x[place(s, n, c, p)])));
    return total;
  };
  for (int64_t c = 0; c < s.channels; ++c) {
    const double mean = sum(c, [](double v) { return v; }) / s.count();
    statistics[c] = {mean, sum(c, [&](double v) { return (v - mean) * (v - mean); }) / s.count()};
  }
  return statistics;
}

// Runs forward and backward and compares all outputs with the formulas on naive statistics.
template <typename T>
void check(const std::vector<T>& storage, const ChannelShape& s, Distance distance, Moment moment, int64_t shift = 0) {
  using A = Accumulator<T>;
  const T* x = storage.data() + shift;
  const auto what = std::to_string(s.batch) + "x" + std::to_string(s.channels) + "x" + std::to_string(s.plane) +
                    (s.channels_last ? " channels_last" : "") + " distance " + std::to_string(int(distance));
  SCOPED_TRACE(what);
  const auto mean = normal<A>(s.channels, 0, 1, 11);
  auto var = normal<A>(s.channels, 0, 1, 12);
  for (A& v : var) v = v * v + A(0.5);
  const A grad = 1.5;
  const auto result = run(x, s, mean, var, distance, moment, grad);

  const auto statistics = naive_statistics(x, s);
  const auto given = [&](int64_t c) { return ChannelStatistics<double>{mean[c], var[c]}; };
  DistanceSums<double> sums;
  for (int64_t c = 0; c < s.channels; ++c) {
    const auto term = channel_distance(distance, moment, statistics[c], given(c));
    sums.mean += term.mean;
    sums.moment += term.moment;
  }
  expect_close(std::vector<A>{result.loss}, {distance_loss(distance, sums)}, kSumError<T>, "loss");
  std::vector<double> offsets, slopes, means, grads(s.channels * s.count());
  for (int64_t c = 0; c < s.channels; ++c) {
    const auto g = pixel_gradient<double>(distance, moment, statistics[c], given(c), sums, s.count());
    offsets.push_back(g.offset);
    slopes.push_back(g.slope);
    means.push_back(g.mean);
    for (int64_t n = 0; n < s.batch; ++n)
      for (int64_t p = 0; p < s.plane; ++p) {
        const int64_t i = place(s, n, c, p);
        grads[i] = grad * (g.offset + g.slope * (widen(x[i]) - g.mean));
      }
  }
  const auto row = [&](int i) {
    const auto begin = result.coefficients.begin() + i * s.channels;
    return std::vector<A>(begin, begin + s.channels);
  };
  expect_close(row(0), offsets, 3 * kSumError<T>, "offset");
  expect_close(row(1), slopes, 3 * kSumError<T>, "slope");
  expect_close(row(2), means, kSumError<T>, "mean");
  expect_close(result.grad, grads, kStoreError<T>, "grad");
}

template <typename T>
class BNMatch : public ::testing::Test {};
TYPED_TEST_SUITE(BNMatch, PixelTypes);

TYPED_TEST(BNMatch, AllShapes) {
  // Sizes below a warp, odd ones, ones that split into packs and ones that do not, more channels than a block has
  // threads, one pixel a plane, splits in several blocks, and partial results for the combining kernel.
  const int64_t shapes[][3] = {{1, 1, 2},    {2, 3, 1},    {5, 7, 9},   {3, 8, 16},    {2, 16, 49},
                               {4, 2, 1200}, {2, 1030, 4}, {65, 48, 4}, {7, 1100, 1},  {3, 72, 40},
                               {2, 1, 5000}, {300, 8, 8},  {1, 36, 64}, {2, 64, 2500}, {1, 144, 7}};
  int i = 0;
  for (const auto& [batch, channels, plane] : shapes)
    for (const bool channels_last : {false, true}) {
      if (plane == 1 && !channels_last) continue;
      const auto x = normal<TypeParam>(batch * channels * plane, 0.3, 1.7, 1 + i);
      check(x, {batch, channels, plane, channels_last}, kDistances[i % 3], kMoments[i % 2]);
      ++i;
    }
}

TYPED_TEST(BNMatch, AllDistancesAndMoments) {
  const auto x = normal<TypeParam>(4 * 16 * 36, -0.5, 0.8, 2);
  for (const auto distance : kDistances)
    for (const auto moment : kMoments)
      for (const bool channels_last : {false, true}) check(x, {4, 16, 36, channels_last}, distance, moment);
}

TYPED_TEST(BNMatch, MisalignedPointer) {
  const auto x = normal<TypeParam>(3 * 16 * 16 + 1, 0, 1, 3);
  for (const bool channels_last : {false, true}) check(x, {3, 16, 16, channels_last}, Distance::l2, Moment::var, 1);
}

TYPED_TEST(BNMatch, VarianceBesideALargeMean) {
  using A = Accumulator<TypeParam>;
  for (const bool channels_last : {false, true}) {
    const ChannelShape s{16, 4, 1024, channels_last};
    const auto x = normal<TypeParam>(s.channels * s.count(), 1000, 1, 4);
    // With zeros given, the squared distance's slope is 4 * var / count.
    const std::vector<A> zeros(s.channels);
    const auto result = run(x.data(), s, zeros, zeros, Distance::squared, Moment::var, A(1));
    const auto wanted = naive_statistics(x.data(), s);
    for (int64_t c = 0; c < s.channels; ++c) {
      const double var = double(result.coefficients[s.channels + c]) * s.count() / 4;
      EXPECT_NEAR(var, wanted[c].var, wanted[c].var * (sizeof(A) == 8 ? 1e-9 : 1e-4));
    }
  }
}

TYPED_TEST(BNMatch, ConstantChannelHasExactlyNoVariance) {
  using A = Accumulator<TypeParam>;
  for (const bool channels_last : {false, true}) {
    const ChannelShape s{9, 2, 200, channels_last};
    std::vector<TypeParam> x(s.channels * s.count(), stored<TypeParam>(0.7));
    const A mean = widen(x[0]);
    for (const auto distance : {Distance::l2, Distance::squared})
      for (const auto moment : kMoments) {
        const auto result = run(x.data(), s, {mean, mean}, std::vector<A>{A(0), A(0)}, distance, moment, A(1));
        EXPECT_EQ(result.loss, A(0));
        for (const auto& g : result.grad) EXPECT_EQ(widen(g), A(0));
      }
  }
}

TYPED_TEST(BNMatch, NanStaysInItsChannelsStatisticsAndTheLoss) {
  using A = Accumulator<TypeParam>;
  for (const bool channels_last : {false, true}) {
    const ChannelShape s{3, 5, 50, channels_last};
    auto x = normal<TypeParam>(s.channels * s.count(), 0, 1, 5);
    x[place(s, 1, 3, 17)] = stored<TypeParam>(NAN);
    const std::vector<A> ones(s.channels, A(1));
    const auto result = run(x.data(), s, ones, ones, Distance::squared, Moment::var, A(1));
    EXPECT_TRUE(std::isnan(result.loss));
    for (int64_t c = 0; c < s.channels; ++c) EXPECT_EQ(std::isnan(widen(result.grad[place(s, 0, c, 0)])), c == 3) << c;
  }
}

TYPED_TEST(BNMatch, SameBitsWhateverTheOrderOfThreads) {
  using A = Accumulator<TypeParam>;
  for (const bool channels_last : {false, true}) {
    const ChannelShape s{4, 40, 640, channels_last};
    const auto x = normal<TypeParam>(s.channels * s.count(), 0, 1, 6);
    const std::vector<A> ones(s.channels, A(1));
    const auto first = run(x.data(), s, ones, ones, Distance::l2, Moment::var, A(1));
    emulator::order_seed = 77;
    const auto second = run(x.data(), s, ones, ones, Distance::l2, Moment::var, A(1));
    emulator::order_seed = 1;
    EXPECT_EQ(first.loss, second.loss);
    EXPECT_EQ(first.coefficients, second.coefficients);
  }
}

// Which kernels a shape takes on a large GPU: the plan must cover it exactly.
TEST(BNMatchPlan, CoversEveryRow) {
  const std::vector<float> x(64);
  for (const int64_t channels : {1, 3, 16, 36, 64, 100, 144, 2048, 5000})
    for (const int64_t rows : {1, 7, 64, 3000, 200704}) {
      const auto tile = row_tile(rows, channels, 4 * 132);
      EXPECT_EQ(kThreads % tile.lanes, 0);
      EXPECT_GE(tile.tiles * tile.lanes, channels);
      EXPECT_LT((tile.tiles - 1) * tile.lanes, channels);
      EXPECT_GE(tile.splits * tile.chunk, rows);
      EXPECT_LT((tile.splits - 1) * tile.chunk, rows);
      EXPECT_LE(tile.splits, 65535);
    }
}

}  // namespace
}  // namespace exml::cuda
