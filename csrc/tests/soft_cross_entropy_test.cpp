#include "ops/cuda/soft_cross_entropy_kernel.cu"
#include "tests/arrays.h"

namespace exml::cuda {
namespace {

using namespace exml::tests;

template <typename T>
struct Result {
  std::vector<Accumulator<T>> losses, lse;
  std::vector<T> grad;
};

// grads: one value, or one a row.
template <typename T>
Result<T> run(const std::vector<T>& logits, const Target<Accumulator<T>>& target, int64_t rows, double temperature,
              const std::vector<double>& grads) {
  using A = Accumulator<T>;
  const int64_t classes = static_cast<int64_t>(logits.size()) / rows;
  Result<T> result{unwritten<A>(rows), unwritten<A>(rows), unwritten<T>(rows * classes)};
  const A scale = A(1 / temperature);
  soft_cross_entropy_forward(logits.data(), target, rows, classes, scale, result.losses.data(), result.lse.data(),
                             nullptr);
  const std::vector<A> pulls(grads.begin(), grads.end());
  soft_cross_entropy_backward(pulls.data(), grads.size() > 1, logits.data(), target, result.lse.data(), rows, classes,
                              scale, scale, result.grad.data(), nullptr);
  return result;
}

template <typename T>
void check(const std::vector<T>& logits, const Target<Accumulator<T>>& target, int64_t rows, double temperature,
           const std::vector<double>& grads) {
  const int64_t classes = static_cast<int64_t>(logits.size()) / rows;
  SCOPED_TRACE(std::to_string(rows) + "x" + std::to_string(classes) + (target.indices ? " indices" : " soft"));
  auto got = run(logits, target, rows, temperature, grads);
  std::vector<double> losses(rows), lses(rows), grad(rows * classes);
  for (int64_t n = 0; n < rows; ++n) {
    const auto z = [&](int64_t k) { return double(widen(logits[n * classes + k])) / temperature; };
    const auto t = [&](int64_t k) {
      return target.indices ? double(target.indices[n] == k) : double(target.probabilities[n * classes + k]);
    };
    double top = z(0), total = 0, mass = 0;
    for (int64_t k = 1; k < classes; ++k) top = std::fmax(top, z(k));
    for (int64_t k = 0; k < classes; ++k) total += std::exp(z(k) - top);
    lses[n] = std::log(total);
    for (int64_t k = 0; k < classes; ++k) {
      losses[n] += t(k) * (lses[n] - (z(k) - top));
      mass += t(k);
    }
    for (int64_t k = 0; k < classes; ++k)
      grad[n * classes + k] =
          grads[grads.size() > 1 ? n : 0] / temperature * (mass * std::exp(z(k) - top - lses[n]) - t(k));
  }
  for (int64_t n = 0; n < rows; ++n) {  // zero where one class has all the probability
    got.lse[n] += 1;
    lses[n] += 1;
  }
  expect_close(got.lse, lses, kSumError<T>, "lse");
  expect_close(got.losses, losses, kSumError<T>, "losses");
  expect_close(got.grad, grad, kStoreError<T>, "grad");
}

template <typename T>
class SoftCrossEntropy : public ::testing::Test {};
TYPED_TEST_SUITE(SoftCrossEntropy, PixelTypes);

TYPED_TEST(SoftCrossEntropy, AllShapes) {
  using A = Accumulator<TypeParam>;
  // A row a warp and a row a block; rows that fill the last block and rows that do not; rows shorter than a warp.
  const int64_t shapes[][2] = {{1, 1}, {1, 2}, {3, 10}, {8, 32}, {17, 33}, {9, 1000}, {2, 1024}, {3, 1025}, {2, 3000}};
  for (const auto& [rows, classes] : shapes) {
    const auto logits = normal<TypeParam>(rows * classes, 0, 3, rows);
    std::vector<int64_t> indices;
    for (int64_t n = 0; n < rows; ++n) indices.push_back((7 * n + 1) % classes);
    auto soft = normal<A>(rows * classes, 0, 1, rows + 1);  // rows that need not sum to one
    for (A& p : soft) p = p * p / A(classes);
    std::vector<double> grads;
    for (int64_t n = 0; n < rows; ++n) grads.push_back(0.5 + 0.1 * double(n));
    check(logits, {indices.data(), nullptr}, rows, 1.0, {1.5});
    check(logits, {indices.data(), nullptr}, rows, 4.0, grads);
    check(logits, {nullptr, soft.data()}, rows, 2.5, {0.7});
    check(logits, {nullptr, soft.data()}, rows, 1.0, grads);
  }
}

TYPED_TEST(SoftCrossEntropy, HugeLogitsDoNotOverflow) {
  const auto logits = normal<TypeParam>(4 * 50, 30000, 1000, 3);
  const int64_t indices[4] = {0, 1, 48, 49};
  check(logits, {indices, nullptr}, 4, 1.0, {1.0});
}

TYPED_TEST(SoftCrossEntropy, BadRowsAreNanAndOthersAreNot) {
  for (const int64_t classes : {10, 2000}) {
    auto logits = normal<TypeParam>(5 * classes, 0, 1, 4);
    logits[2 * classes + 3] = stored<TypeParam>(NAN);
    const int64_t indices[5] = {0, -1, 1, classes, classes - 1};
    const auto got = run<TypeParam>(logits, {indices, nullptr}, 5, 1.0, {1.0});
    for (int64_t n = 0; n < 5; ++n) {
      const bool bad = n >= 1 && n <= 3;
      EXPECT_EQ(std::isnan(got.losses[n]), bad) << n;
      for (int64_t k = 0; k < classes; ++k) ASSERT_EQ(std::isnan(widen(got.grad[n * classes + k])), bad) << n;
    }
  }
}

}  // namespace
}  // namespace exml::cuda
