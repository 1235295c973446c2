#include "ops/cuda/match_statistics_kernel.cu"
#include "tests/arrays.h"

namespace exml::cuda {
namespace {

using namespace exml::tests;

constexpr Distance kDistances[] = {Distance::l2, Distance::squared, Distance::gaussian_kl};
constexpr Moment kMoments[] = {Moment::var, Moment::std};

// Random statistics and targets of layers with the given numbers of channels.
template <typename A>
struct Network {
  std::vector<std::vector<A>> arrays;
  std::vector<StatisticsLayer<A>> layers;
  int channels = 0;

  explicit Network(const std::vector<int>& sizes) {
    for (const int size : sizes) {
      for (int i = 0; i < 4; ++i) {
        arrays.push_back(normal<A>(size, 0.2, 1, arrays.size() + 1));
        if (i % 2 == 1)
          for (A& v : arrays.back()) v = v * v + A(0.5);
      }
      const auto* a = arrays.data() + arrays.size() - 4;
      layers.push_back(
          {a[0].data(), a[1].data(), a[2].data(), a[3].data(), 1 + 0.5 * double(layers.size() % 3), size, channels});
      channels += size;
    }
  }
};

template <typename A>
struct Result {
  A loss = A(NAN);
  std::vector<double> sums;
  std::vector<A> grad;
};

template <typename A>
Result<A> run(const Network<A>& network, Distance distance, Moment moment, A grad) {
  const auto count = static_cast<int64_t>(network.layers.size());
  Result<A> result{A(NAN), unwritten<double>(2 * count), unwritten<A>(2 * network.channels)};
  match_statistics_forward(network.layers.data(), count, distance, moment, result.sums.data(), &result.loss, nullptr);
  match_statistics_backward(&grad, network.layers.data(), count, distance, moment, result.sums.data(), network.channels,
                            result.grad.data(), nullptr);
  return result;
}

template <typename A>
void check(const std::vector<int>& sizes, Distance distance, Moment moment) {
  SCOPED_TRACE(std::to_string(sizes.size()) + " layers, distance " + std::to_string(int(distance)));
  const Network<A> network(sizes);
  const A grad = 1.5;
  const auto got = run(network, distance, moment, grad);
  double loss = 0;
  std::vector<double> sums, grads(2 * network.channels);
  for (const auto& layer : network.layers) {
    const auto batch = [&](int c) { return ChannelStatistics<double>{layer.mean[c], layer.var[c]}; };
    const auto target = [&](int c) { return ChannelStatistics<double>{layer.target_mean[c], layer.target_var[c]}; };
    DistanceSums<double> sum;
    for (int c = 0; c < layer.channels; ++c) {
      const auto term = channel_distance(distance, moment, batch(c), target(c));
      sum.mean += term.mean;
      sum.moment += term.moment;
    }
    sums.push_back(sum.mean);
    sums.push_back(sum.moment);
    loss += layer.weight * distance_loss(distance, sum);
    for (int c = 0; c < layer.channels; ++c) {
      const auto d = statistics_gradient(distance, moment, batch(c), target(c), sum);
      grads[layer.offset + c] = grad * layer.weight * d.mean;
      grads[network.channels + layer.offset + c] = grad * layer.weight * d.var;
    }
  }
  expect_close(std::vector<A>{got.loss}, {loss}, kSumError<A>, "loss");
  expect_close(got.sums, sums, 1e-12, "sums");
  expect_close(got.grad, grads, kSumError<A>, "grad");
}

template <typename A>
class MatchStatistics : public ::testing::Test {};
using Accumulators = ::testing::Types<float, double>;
TYPED_TEST_SUITE(MatchStatistics, Accumulators);

TYPED_TEST(MatchStatistics, AllDistancesAndMoments) {
  // Fewer channels than a warp, whole and partial chunks, more chunks than the block has warps.
  for (const auto distance : kDistances)
    for (const auto moment : kMoments) check<TypeParam>({1, 31, 128, 129, 5, 3000, 64}, distance, moment);
}

TYPED_TEST(MatchStatistics, AnyNumberOfLayers) {
  for (const size_t layers : {1, 79, 80, 81, 170}) {
    std::vector<int> sizes(layers);
    for (size_t l = 0; l < layers; ++l) sizes[l] = 1 + static_cast<int>(l * 37 % 300);
    const int64_t before = emulator::launches;
    check<TypeParam>(sizes, Distance::l2, Moment::var);
    EXPECT_EQ(emulator::launches - before, 2 * divide_up(layers, 80));
  }
}

TYPED_TEST(MatchStatistics, NanStaysInItsLayer) {
  Network<TypeParam> network({40, 300, 7});
  network.arrays[4][200] = TypeParam(NAN);  // a mean of the second layer
  const auto got = run(network, Distance::l2, Moment::var, TypeParam(1));
  EXPECT_TRUE(std::isnan(got.loss));
  for (int c = 0; c < 347; ++c) EXPECT_EQ(std::isnan(got.grad[c]), c >= 40 && c < 340) << c;
}

TYPED_TEST(MatchStatistics, SameBitsWhateverTheOrderOfThreads) {
  const Network<TypeParam> network({64, 500, 3, 2048});
  const auto first = run(network, Distance::l2, Moment::std, TypeParam(1));
  emulator::order_seed = 77;
  const auto second = run(network, Distance::l2, Moment::std, TypeParam(1));
  emulator::order_seed = 1;
  EXPECT_EQ(first.loss, second.loss);
  EXPECT_EQ(first.sums, second.sums);
  EXPECT_EQ(first.grad, second.grad);
}

}  // namespace
}  // namespace exml::cuda
