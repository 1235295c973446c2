#include "ops/cuda/soft_cross_entropy_kernel.cu"
#include "tests/kernel_checks.h"

namespace exml {
namespace {

template <typename T>
class SoftCrossEntropyKernel : public ::testing::Test {};
TYPED_TEST_SUITE(SoftCrossEntropyKernel, exml::testing::PixelTypes);

TYPED_TEST(SoftCrossEntropyKernel, MatchesTheDefinition) {
  using T = TypeParam;
  using A = Accumulator<T>;
  for (const auto& [rows, classes] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {9, 10}, {3, 33}, {2, 1025}})
    for (const bool soft : {false, true}) {
      const double temperature = 2;
      const auto logits = exml::testing::random_pixels<T>(rows * classes, 6, 0, 4);
      std::vector<int64_t> indices(rows);
      std::vector<A> goal(rows * classes);
      for (int64_t n = 0; n < rows; ++n) indices[n] = (7 * n + 3) % classes;
      for (size_t i = 0; i < goal.size(); ++i) goal[i] = A(double(i * 31 % 17) / 16);
      const cuda::Target<A> target{soft ? nullptr : indices.data(), soft ? goal.data() : nullptr};
      std::vector<A> losses(rows, A(NAN)), lse(rows, A(NAN));
      A total = A(NAN);
      cuda::soft_cross_entropy_forward(logits.data(), target, rows, classes, A(1 / temperature), A(1.0 / rows),
                                       losses.data(), lse.data(), &total, nullptr);
      std::vector<A> grad(rows);
      for (int64_t n = 0; n < rows; ++n) grad[n] = A(1 + n);
      std::vector<T> out(logits.size());
      for (T& value : out) narrow(A(NAN), value);
      cuda::soft_cross_entropy_backward(grad.data(), true, A(1 / temperature), logits.data(), target, lse.data(), rows,
                                        classes, A(1 / temperature), out.data(), nullptr);
      double expected_total = 0;
      for (int64_t n = 0; n < rows; ++n) {
        double top = -INFINITY, sum = 0, loss = 0, mass = 0;
        const auto z = [&](int64_t k) { return double(widen(logits[n * classes + k])) / temperature; };
        const auto t = [&](int64_t k) { return soft ? double(goal[n * classes + k]) : double(k == indices[n]); };
        for (int64_t k = 0; k < classes; ++k) top = std::max(top, z(k));
        for (int64_t k = 0; k < classes; ++k) sum += std::exp(z(k) - top);
        for (int64_t k = 0; k < classes; ++k) {
          loss += t(k) * (top + std::log(sum) - z(k));
          mass += t(k);
        }
        expected_total += loss / rows;
        const double exact = std::is_same_v<T, double> ? 1e-11 : 3e-5;
        EXPECT_NEAR(losses[n], loss, exact * (1 + std::abs(loss)));
        for (int64_t k = 0; k < classes; ++k) {
          const double g = (1 + n) / temperature * (mass * std::exp(z(k) - top) / sum - t(k));
          exml::testing::expect_near<T>(widen(out[n * classes + k]), g, 1 + std::abs(g), "gradient");
        }
      }
      EXPECT_NEAR(total, expected_total, (std::is_same_v<T, double> ? 1e-11 : 3e-5) * (1 + std::abs(expected_total)));
    }
}

TEST(SoftCrossEntropyKernel, AnIndexOutOfRangeIsNaN) {
  const std::vector<float> logits(9, 0.0f);
  const std::vector<int64_t> indices = {0, 3, -1};
  std::vector<float> losses(3), lse(3), out(9);
  const cuda::Target<float> target{indices.data(), nullptr};
  cuda::soft_cross_entropy_forward<float>(logits.data(), target, 3, 3, 1.0f, 1.0f, losses.data(), lse.data(), nullptr,
                                          nullptr);
  EXPECT_NEAR(losses[0], std::log(3.0), 1e-6);
  EXPECT_TRUE(std::isnan(losses[1]) && std::isnan(losses[2]));
  const float grad = 1;
  cuda::soft_cross_entropy_backward<float>(&grad, false, 1.0f, logits.data(), target, lse.data(), 3, 3, 1.0f,
                                           out.data(), nullptr);
  EXPECT_TRUE(std::isfinite(out[0]) && std::isnan(out[3]) && std::isnan(out[8]));
}

}  // namespace
}  // namespace exml
