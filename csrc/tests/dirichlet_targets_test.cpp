#include "ops/cuda/dirichlet_targets_kernel.cu"
#include "tests/arrays.h"

namespace exml::cuda {
namespace {

using namespace exml::tests;

template <typename A>
std::vector<A> draw(const std::vector<A>& similarity, const std::vector<int64_t>& labels, const std::vector<A>& betas,
                    int64_t classes, const RandomState& random) {
  const int64_t rows = static_cast<int64_t>(labels.size());
  auto out = unwritten<A>(rows * classes);
  auto scratch = unwritten<double>(rows * classes);
  dirichlet_targets(similarity.data(), labels.data(), betas.data(), rows, classes, random, scratch.data(), out.data(),
                    nullptr);
  return out;
}

template <typename A>
class DirichletTargets : public ::testing::Test {};
using ValueTypes = ::testing::Types<float, double>;
TYPED_TEST_SUITE(DirichletTargets, ValueTypes);

TYPED_TEST(DirichletTargets, EachRowIsADraw) {
  for (const int64_t classes : {1, 2, 10, 33, 1030}) {
    std::vector<TypeParam> similarity(classes * classes, TypeParam(1));
    const std::vector<TypeParam> betas = {TypeParam(0.01), TypeParam(0.1), TypeParam(1), TypeParam(10)};
    const std::vector<int64_t> labels = {0, classes - 1, classes / 2, 0};
    const auto out = draw(similarity, labels, betas, classes, {7, 0, nullptr, nullptr});
    for (int n = 0; n < 4; ++n) {
      double total = 0;
      for (int64_t k = 0; k < classes; ++k) {
        const double value = out[n * classes + k];
        ASSERT_TRUE(value >= 0 && value <= 1) << value;
        total += value;
      }
      EXPECT_NEAR(total, 1, sizeof(TypeParam) == 8 ? 1e-12 : 1e-5);
    }
  }
}

TYPED_TEST(DirichletTargets, MomentsOfTheMarginals) {
  const int64_t classes = 3, rows = 4000;
  const std::vector<TypeParam> similarity = {1, TypeParam(0.5), TypeParam(0.25), 1, 1, 1, 2, 1, 1};
  for (const double beta : {0.05, 1.0, 8.0}) {
    const auto out = draw(similarity, std::vector<int64_t>(rows, 0), std::vector<TypeParam>(rows, TypeParam(beta)),
                          classes, {11, 8, nullptr, nullptr});
    const double alpha[3] = {beta, beta / 2, beta / 4}, sum = beta * 1.75;
    for (int64_t k = 0; k < classes; ++k) {
      double mean = 0, square = 0;
      for (int64_t n = 0; n < rows; ++n) {
        mean += out[n * classes + k] / rows;
        square += double(out[n * classes + k]) * out[n * classes + k] / rows;
      }
      const double wanted = alpha[k] / sum, variance = wanted * (1 - wanted) / (sum + 1);
      EXPECT_NEAR(mean, wanted, 4.5 * std::sqrt(variance / rows)) << beta << " " << k;
      // A bounded variable's squared deviation varies by at most a quarter of its range.
      EXPECT_NEAR(square - mean * mean, variance, 4.5 * 0.5 / std::sqrt(double(rows))) << beta << " " << k;
    }
  }
}

TYPED_TEST(DirichletTargets, StateByValueAndOnTheDeviceAgree) {
  const std::vector<TypeParam> similarity(16, TypeParam(1)), betas(5, TypeParam(1));
  const std::vector<int64_t> labels = {0, 1, 2, 3, 0};
  const uint64_t words = dirichlet_targets_words();
  EXPECT_EQ(words % 4, 0u);  // as torch's generator demands
  const auto by_value = draw(similarity, labels, betas, 4, {123456789012345, 5 * words, nullptr, nullptr});
  EXPECT_EQ(by_value, draw(similarity, labels, betas, 4, {123456789012345, 5 * words, nullptr, nullptr}));
  const int64_t seed = 123456789012345, offset = static_cast<int64_t>(3 * words);
  EXPECT_EQ(by_value, draw(similarity, labels, betas, 4, {0, 2 * words, &seed, &offset}));
  EXPECT_NE(by_value, draw(similarity, labels, betas, 4, {123456789012345, 6 * words, nullptr, nullptr}));
  EXPECT_NE(by_value, draw(similarity, labels, betas, 4, {123456789012346, 5 * words, nullptr, nullptr}));
}

TYPED_TEST(DirichletTargets, BadRowsAreNanAndOthersAreNot) {
  for (const int64_t classes : {4, 1100}) {
    std::vector<TypeParam> similarity(classes * classes, TypeParam(1));
    similarity[1 * classes + 2] = 0;
    similarity[2 * classes + 3] = NAN;
    const std::vector<int64_t> labels = {0, 1, 2, -1, classes, 3, 3, 3};
    const std::vector<TypeParam> betas = {1, 1, 1, 1, 1, TypeParam(-1), TypeParam(INFINITY), 1};
    const auto out = draw(similarity, labels, betas, classes, {1, 0, nullptr, nullptr});
    for (int n = 0; n < 8; ++n)
      for (int64_t k = 0; k < classes; ++k)
        ASSERT_EQ(std::isnan(out[n * classes + k]), n > 0 && n < 7) << n << " " << k;
  }
}

}  // namespace
}  // namespace exml::cuda
