// The CUDA kernels by the emulator, and the CPU's inner loops of every instruction set.
#include "ops/cpu/capability.cpp"
#include "ops/cuda/jensen_shannon_kernel.cu"
#include "tests/arrays.h"

namespace exml::tests {

template <typename T>
struct Rows {
  std::vector<T> teacher, student;
  int64_t rows;
  double temperature = 1;
  std::vector<double> grads = {1};  // one value, or one a row

  int64_t classes() const { return static_cast<int64_t>(teacher.size()) / rows; }
  Accumulator<T> scale() const { return Accumulator<T>(1 / temperature); }
};

template <typename T>
struct Result {
  std::vector<Accumulator<T>> losses, teacher_lse, student_lse;
  std::vector<T> teacher_grad, student_grad;

  explicit Result(const Rows<T>& of)
      : losses(unwritten<Accumulator<T>>(of.rows)),
        teacher_lse(losses),
        student_lse(losses),
        teacher_grad(unwritten<T>(of.teacher.size())),
        student_grad(teacher_grad) {}
};

}  // namespace exml::tests

#define EXML_SIMD_SOURCE "tests/jensen_shannon_simd_check.h"
#include "ops/cpu/for_each_capability.h"

namespace exml::cuda {
namespace {

using namespace exml::tests;

template <typename T>
Result<T> run(const Rows<T>& of) {
  using A = Accumulator<T>;
  Result<T> result(of);
  const int64_t rows = of.rows, classes = of.classes();
  const A scale = of.scale();
  jensen_shannon_forward(of.teacher.data(), of.student.data(), rows, classes, scale, result.losses.data(),
                         result.teacher_lse.data(), result.student_lse.data(), nullptr);
  const std::vector<A> pulls(of.grads.begin(), of.grads.end());
  const bool per_row = pulls.size() > 1;
  jensen_shannon_backward(pulls.data(), per_row, of.teacher.data(), of.student.data(), result.teacher_lse.data(),
                          result.student_lse.data(), rows, classes, scale, scale, result.teacher_grad.data(), nullptr);
  jensen_shannon_backward(pulls.data(), per_row, of.student.data(), of.teacher.data(), result.student_lse.data(),
                          result.teacher_lse.data(), rows, classes, scale, scale, result.student_grad.data(), nullptr);
  return result;
}

// Of the CUDA kernels, and of what the CPU has.
template <typename T, typename F>
void for_each_engine(const Rows<T>& of, F f) {
  const auto named = [&](const char* name, const Result<T>& result) {
    SCOPED_TRACE(std::string(name) + " " + std::to_string(of.rows) + "x" + std::to_string(of.classes()));
    f(result);
  };
  named("cuda", run(of));
  named("baseline", cpu::baseline::run_rows(of));
#if EXML_CPU_VARIANTS
  if (cpu::capability() >= cpu::Capability::avx2) named("avx2", cpu::avx2::run_rows(of));
  if (cpu::capability() >= cpu::Capability::avx512) named("avx512", cpu::avx512::run_rows(of));
#endif
}

std::vector<double> log_softmax(const std::vector<double>& z, double& lse) {
  double top = z[0], total = 0;
  for (const double x : z) top = std::fmax(top, x);
  for (const double x : z) total += std::exp(x - top);
  lse = std::log(total);
  std::vector<double> result;
  for (const double x : z) result.push_back(x - top - std::log(total));
  return result;
}

template <typename T>
void check(const Rows<T>& of) {
  const int64_t rows = of.rows, classes = of.classes();
  std::vector<double> losses(rows), lses[2], grads[2];
  for (int64_t n = 0; n < rows; ++n) {
    std::vector<double> logs[2], log_m(classes);
    for (const int side : {0, 1}) {
      std::vector<double> z(classes);
      for (int64_t k = 0; k < classes; ++k)
        z[k] = double(widen((side ? of.student : of.teacher)[n * classes + k])) / of.temperature;
      logs[side] = log_softmax(z, lses[side].emplace_back());
    }
    for (int64_t k = 0; k < classes; ++k) {
      const double p = logs[0][k], q = logs[1][k];
      log_m[k] = std::fmax(p, q) + std::log1p(std::exp(-std::fabs(p - q))) - std::log(2.0);
    }
    losses[n] = 1;
    for (const int side : {0, 1}) {
      double kl = 0;
      for (int64_t k = 0; k < classes; ++k) kl += std::exp(logs[side][k]) * (logs[side][k] - log_m[k]);
      losses[n] -= kl / 2;
      for (int64_t k = 0; k < classes; ++k)
        grads[side].push_back(of.grads[of.grads.size() > 1 ? n : 0] / of.temperature * std::exp(logs[side][k]) *
                              (kl - (logs[side][k] - log_m[k])) / 2);
    }
  }
  for_each_engine(of, [&](const Result<T>& got) {
    expect_close(got.losses, losses, kSumError<T>, "losses");
    expect_close(got.teacher_lse, lses[0], kSumError<T>, "teacher's lse");
    expect_close(got.student_lse, lses[1], kSumError<T>, "student's lse");
    expect_close(got.teacher_grad, grads[0], kStoreError<T>, "teacher's grad");
    expect_close(got.student_grad, grads[1], kStoreError<T>, "student's grad");
  });
}

template <typename T>
class JensenShannon : public ::testing::Test {};
TYPED_TEST_SUITE(JensenShannon, PixelTypes);

TYPED_TEST(JensenShannon, AllShapes) {
  using T = TypeParam;
  // A row a warp and a row a block; rows that fill the last block and rows that do not; rows shorter than a vector.
  const int64_t shapes[][2] = {{1, 2}, {3, 10}, {8, 32}, {17, 33}, {9, 1000}, {2, 1024}, {3, 1025}, {2, 3000}};
  for (const auto& [rows, classes] : shapes) {
    const auto teacher = normal<T>(rows * classes, 0, 3, rows), student = normal<T>(rows * classes, 1, 2, rows + 1);
    std::vector<double> grads;
    for (int64_t n = 0; n < rows; ++n) grads.push_back(0.5 + 0.1 * double(n));
    check<T>({teacher, student, rows, 1.0, {1.5}});
    check<T>({teacher, student, rows, 4.0, grads});
  }
}

TYPED_TEST(JensenShannon, NearlyEqualDistributionsKeepTheirGradient) {
  using T = TypeParam;
  const auto teacher = normal<T>(6 * 100, 0, 1, 7);
  auto student = teacher;
  for (size_t i = 0; i < student.size(); i += 3) student[i] = stored<T>(double(widen(student[i])) * 1.02);
  check<T>({teacher, student, 6});
}

TYPED_TEST(JensenShannon, HugeLogitsDoNotOverflow) {
  using T = TypeParam;
  for (const double most : {1e4, 1e38, 3.3e38}) {
    std::vector<T> teacher(2 * 20, stored<T>(-most)), student(2 * 20, stored<T>(-most));
    for (const int i : {3, 23}) teacher[i] = stored<T>(most);
    for (const int i : {4, 23}) student[i] = stored<T>(most);
    for_each_engine<T>({teacher, student, 2}, [&](const Result<T>& got) {
      EXPECT_NEAR(got.losses[0], 1 - std::log(2.0), 1e-6) << most;
      EXPECT_EQ(got.losses[1], 1) << most;
      for (const auto& grad : {got.teacher_grad, got.student_grad})
        for (const T g : grad) ASSERT_EQ(std::fabs(widen(g)), 0) << most;
    });
  }
}

TYPED_TEST(JensenShannon, EqualLogitsGiveExactlyOneAndNoGradient) {
  using T = TypeParam;
  for (const int64_t classes : {2, 45, 1500}) {
    const auto logits = normal<T>(3 * classes, 0, 5, 6);
    for_each_engine<T>({logits, logits, 3}, [&](const Result<T>& got) {
      for (const auto loss : got.losses) EXPECT_EQ(loss, 1);
      for (const auto& grad : {got.teacher_grad, got.student_grad})
        for (const T g : grad) ASSERT_EQ(std::fabs(widen(g)), 0);
    });
  }
}

TYPED_TEST(JensenShannon, RowsThatAreNotFiniteAreNanAndOthersAreNot) {
  using T = TypeParam;
  for (const int64_t classes : {10, 2000})
    for (const double bad : {double(NAN), double(INFINITY), -double(INFINITY)}) {
      auto teacher = normal<T>(6 * classes, 0, 1, 4), student = normal<T>(6 * classes, 0, 1, 5);
      teacher[1 * classes + 3] = student[3 * classes + 9] = stored<T>(bad);
      teacher[4 * classes + 2] = student[4 * classes + 2] = stored<T>(bad);
      for_each_engine<T>({teacher, student, 6}, [&](const Result<T>& got) {
        for (int64_t n = 0; n < 6; ++n) {
          const bool wanted = n == 1 || n == 3 || n == 4;
          EXPECT_EQ(std::isnan(got.losses[n]), wanted) << n << " with " << bad;
          for (const auto& grad : {got.teacher_grad, got.student_grad})
            for (int64_t k = 0; k < classes; ++k)
              ASSERT_EQ(std::isnan(widen(grad[n * classes + k])), wanted) << n << " with " << bad;
        }
      });
    }
}

TEST(HalfLogMeanExp, FewUlp) {
  std::vector<double> ulps = {cpu::baseline::half_log_mean_exp_ulps()};
#if EXML_CPU_VARIANTS
  if (cpu::capability() >= cpu::Capability::avx2) ulps.push_back(cpu::avx2::half_log_mean_exp_ulps());
  if (cpu::capability() >= cpu::Capability::avx512) ulps.push_back(cpu::avx512::half_log_mean_exp_ulps());
#endif
  for (const double largest : ulps) EXPECT_LT(largest, 4);
}

}  // namespace
}  // namespace exml::cuda
