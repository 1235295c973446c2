// The CPU's rows as its kernel runs them, for jensen_shannon_test: compiled once for each instruction set.
#include "ops/cpu/jensen_shannon_simd.h"

namespace exml::cpu::EXML_CAPABILITY {

template <typename T>
tests::Result<T> run_rows(const tests::Rows<T>& of) {
  using A = Accumulator<T>;
  tests::Result<T> result(of);
  const int64_t classes = of.classes();
  const A scale = of.scale();
  for (int64_t n = 0; n < of.rows; ++n) {
    const int64_t start = n * classes;
    const T *teacher = of.teacher.data() + start, *student = of.student.data() + start;
    A &p_lse = result.teacher_lse[n], &q_lse = result.student_lse[n];
    const A js = row_divergence(teacher, student, classes, scale, &p_lse, &q_lse);
    if (js != js) p_lse = q_lse = js;
    result.losses[n] = A(1) - js;
    const A pull = scale * A(of.grads[of.grads.size() > 1 ? n : 0]);
    row_divergence_gradient(teacher, student, classes, scale, p_lse, q_lse, pull, result.teacher_grad.data() + start);
    row_divergence_gradient(student, teacher, classes, scale, q_lse, p_lse, pull, result.student_grad.data() + start);
  }
  return result;
}

// Largest error of float32 vectors against double over [-100, 0], in units in the last place.
double half_log_mean_exp_ulps() {
  double largest = 0;
  for (float start = -100; start < 0; start += 0.0037f) {
    const auto inputs = tests::around(start);
    for (size_t first = 0; first < inputs.size(); first += kLanes<float>) {
      Vector<float> x = load(inputs.data() + first);
      x = x > 0.0f ? Vector<float>{} : x;
      const Vector<float> got = half_log_mean_exp(x);
      for (int i = 0; i < kLanes<float>; ++i) {
        const double wanted = exml::half_log_mean_exp(double(x[i]));
        const float size = static_cast<float>(std::fabs(wanted));
        largest = std::fmax(largest, std::fabs(got[i] - wanted) / (std::nextafter(size, INFINITY) - size));
      }
    }
  }
  return largest;
}

}  // namespace exml::cpu::EXML_CAPABILITY
