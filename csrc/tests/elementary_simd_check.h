// Errors of the elementary functions on vectors, for activation_test: compiled once for each instruction set.
namespace exml::cpu::EXML_CAPABILITY {

std::vector<double> elementary_errors() {
  std::vector<double> errors(5);
  const auto worse = [&](int i, double error) { errors[i] = std::max(errors[i], error); };
  const auto ulps = [](double got, double wanted) {
    const float rounded = static_cast<float>(wanted);
    return std::fabs(got - wanted) / (std::nextafter(std::fabs(rounded), INFINITY) - std::fabs(rounded));
  };
  const auto check = [&](const std::vector<float>& inputs, auto compare) {
    for (size_t first = 0; first < inputs.size(); first += kLanes<float>) {
      const Vector<float> x = load(inputs.data() + first), t = tanh(x), s = sigmoid(x);
      Vector<float> cdf, density;
      normal(x, cdf, density);
      for (int i = 0; i < kLanes<float>; ++i) compare(first + i, x[i], t[i], s[i], cdf[i], density[i]);
    }
  };
  for (float start = -20; start < 20; start += 0.0017f) {
    check(tests::around(start), [&](size_t, double x, float t, float s, float cdf, float density) {
      worse(0, ulps(t, std::tanh(x)));
      worse(1, ulps(s, 1 / (1 + std::exp(-x))));
      worse(2, std::fabs(cdf - std::erfc(-x / std::sqrt(2.0)) / 2));
      worse(3, std::fabs(density - std::exp(-x * x / 2) / std::sqrt(2 * M_PI)));
    });
  }
  const std::vector<float> steps{1, 0, NAN, 1, 0};
  std::vector<float> limits{INFINITY, -INFINITY, NAN, 1e30f, -1e30f, 0.0f, -0.0f};
  limits.resize(16);
  check(limits, [&](size_t i, float, float t, float s, float cdf, float) {
    const auto same = [](float a, float b) { return std::isnan(b) ? std::isnan(a) : a == b; };
    if (i < steps.size()) errors[4] += !same(t, 2 * steps[i] - 1) + !same(s, steps[i]) + !same(cdf, steps[i]);
    if (i == 5) errors[4] += (t != 0) + (s != 0.5f);
    if (i == 6) errors[4] += !std::signbit(t);
  });
  return errors;
}

}  // namespace exml::cpu::EXML_CAPABILITY
