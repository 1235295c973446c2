#include "ops/cuda/dirichlet_targets_kernel.cu"
#include "tests/kernel_checks.h"

namespace exml {
namespace {

template <typename A>
std::vector<A> draw(const std::vector<A>& similarity, int64_t classes, const std::vector<int64_t>& labels,
                    const std::vector<A>& betas, cuda::PhiloxState state) {
  std::vector<double> logs(labels.size() * classes, NAN);
  std::vector<A> out(logs.size(), A(NAN));
  cuda::dirichlet_targets(similarity.data(), labels.data(), betas.data(), int64_t(labels.size()), classes, state,
                          logs.data(), out.data(), nullptr);
  return out;
}

TEST(DirichletTargetsKernel, MomentsOfTheMarginals) {
  const std::vector<double> alpha = {0.02, 0.5, 3.0};
  const int64_t rows = 3000;
  const std::vector<double> similarity = {1, 1, 1, 0.02, 0.5, 3.0, 1, 1, 1};
  const auto out = draw<double>(similarity, 3, std::vector<int64_t>(rows, 1), std::vector<double>(rows, 1.0),
                                {nullptr, nullptr, 11, 0});
  const double total = 3.52;
  for (int k = 0; k < 3; ++k) {
    double mean = 0, square = 0;
    for (int64_t n = 0; n < rows; ++n) mean += out[n * 3 + k] / rows;
    for (int64_t n = 0; n < rows; ++n) square += std::pow(out[n * 3 + k] - mean, 2) / rows;
    const double variance = alpha[k] * (total - alpha[k]) / (total * total * (total + 1));
    EXPECT_NEAR(mean, alpha[k] / total, 5 * std::sqrt(variance / rows));
    EXPECT_NEAR(square, variance, 0.25 * variance);
  }
}

TEST(DirichletTargetsKernel, SeedAndOffsetByValueOrByAddress) {
  const std::vector<float> similarity(300 * 300, 0.3f), betas(2, 1.0f);
  const std::vector<int64_t> labels = {5, 299};
  const int64_t seed = 9, offset = 256;
  const auto by_value = draw<float>(similarity, 300, labels, betas, {nullptr, nullptr, 9, 256 + 8});
  const auto by_address = draw<float>(similarity, 300, labels, betas, {&seed, &offset, 0, 8});
  const auto later = draw<float>(similarity, 300, labels, betas, {&seed, &offset, 0, 8 + 128});
  EXPECT_EQ(by_value, by_address);
  EXPECT_NE(by_value, later);
  for (int n = 0; n < 2; ++n) {
    double total = 0;
    for (int k = 0; k < 300; ++k) total += by_value[n * 300 + k];
    EXPECT_NEAR(total, 1, 1e-5);
  }
}

TEST(DirichletTargetsKernel, BadRowsAreNaN) {
  const std::vector<double> similarity = {1, 1, 1, -1}, betas = {1, 1, 1, 0, 1};
  const auto out = draw<double>(similarity, 2, {0, 1, 2, 0, -1}, betas, {nullptr, nullptr, 1, 0});
  EXPECT_NEAR(out[0] + out[1], 1, 1e-12);
  for (size_t i = 2; i < out.size(); ++i) EXPECT_TRUE(std::isnan(out[i])) << i;
}

}  // namespace
}  // namespace exml
