// Errors of the elementary functions on vectors, for activation_test: compiled once for each instruction set.
namespace exml::cpu::EXML_CAPABILITY {

std::vector<double> elementary_errors() {
  std::vector<double> errors(5);
  const auto worse = [&](int i, double error) { errors[i] = std::max(errors[i], error); };
  const auto ulps = [](double got, double wanted) {
    const float rounded = static_cast<float>(wanted);
    return std::fabs(got - wanted) / (std::nextafter(std::fabs(rounded), INFINITY) - std::fabs(rounded));
  };
  for (float start = -20; start < 20; start += 0.0017f) {
    Vector<float> x, cdf, density;
    for (int i = 0; i < kLanes<float>; ++i) x[i] = i < 8 ? start + 0.0001f * i : start * std::pow(0.1f, i - 7);
    const Vector<float> t = tanh(x), s = sigmoid(x);
    normal(x, cdf, density);
    for (int i = 0; i < kLanes<float>; ++i) {
      const double exact = x[i];
      worse(0, ulps(t[i], std::tanh(exact)));
      worse(1, ulps(s[i], 1 / (1 + std::exp(-exact))));
      worse(2, std::fabs(cdf[i] - std::erfc(-exact / std::sqrt(2.0)) / 2));
      worse(3, std::fabs(density[i] - std::exp(-exact * exact / 2) / std::sqrt(2 * M_PI)));
    }
  }
  Vector<float> x = {INFINITY, -INFINITY, NAN, 1e30f, -1e30f, 0.0f, -0.0f}, cdf, density;
  const Vector<float> t = tanh(x), s = sigmoid(x);
  normal(x, cdf, density);
  const float steps[] = {1, 0, NAN, 1, 0};
  for (int i = 0; i < 5; ++i) {
    const auto same = [](float a, float b) { return std::isnan(b) ? std::isnan(a) : a == b; };
    errors[4] += !same(t[i], 2 * steps[i] - 1) + !same(s[i], steps[i]) + !same(cdf[i], steps[i]);
  }
  errors[4] += (t[5] != 0) + !std::signbit(t[6]) + (s[5] != 0.5f);
  return errors;
}

}  // namespace exml::cpu::EXML_CAPABILITY
