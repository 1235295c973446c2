// exp, tanh, sigmoid and the normal distribution on vectors: polynomials in float32, the library's functions a lane in
// float64. Compiled once for each instruction set by for_each_capability.h.
namespace exml::cpu::EXML_CAPABILITY {

// e^x = scale (1 + tail) for x <= 0: scale = 2^n and a Taylor polynomial for |x - n ln 2| <= ln 2 / 2. Where e^x has no
// normal float32, scale is 0. A NaN comes out in tail.
EXML_INLINE void exp_parts(Vector<float> x, Vector<float>& scale, Vector<float>& tail) {
  const Mask<float> underflows = x < -87.0f;
  const Vector<float> clamped = underflows ? splat(-87.0f) : x;  // a NaN stays
  const Vector<float> rounder = splat(12582912.0f);              // 1.5 * 2^23: adding it rounds to an integer
  const Vector<float> n = (clamped * 1.44269504f + rounder) - rounder;
  const Vector<float> r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector<float> p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  tail = p * r;
  const Vector<float> whole = x == x ? n : Vector<float>{};
  const Mask<float> exponent = __builtin_convertvector(whole, Mask<float>) + 127;
  scale = underflows ? Vector<float>{} : (Vector<float>)(exponent << 23);
}

// x <= 0, within 2 ulp.
EXML_INLINE Vector<float> exp_nonpositive(Vector<float> x) {
  Vector<float> scale, tail;
  exp_parts(x, scale, tail);
  return scale * tail + scale;
}

EXML_INLINE Vector<float> absolute(Vector<float> x) { return (Vector<float>)((Mask<float>)x & 0x7fffffff); }

// With t = e^(-2|x|) - 1, tanh |x| = -t / (2 + t): no cancellation near zero.
EXML_INLINE Vector<float> tanh(Vector<float> x) {
  Vector<float> scale, tail;
  exp_parts(absolute(x) * -2.0f, scale, tail);
  const Vector<float> t = scale * tail + (scale - 1.0f);
  return (Vector<float>)((Mask<float>)(-t / (t + 2.0f)) | ((Mask<float>)x & INT32_MIN));
}

EXML_INLINE Vector<float> sigmoid(Vector<float> x) {
  const Vector<float> e = exp_nonpositive(-absolute(x));
  return (x >= 0.0f ? splat(1.0f) : e) / (e + 1.0f);
}

// cdf and density of the standard normal distribution. Phi(-a) = e^(-a^2/2) R(a) for a >= 0, with R a polynomial in
// 1 / (1 + 0.47 a) fitted to scipy's erfcx for the least absolute error of Phi (2e-9; with rounding 1e-7).
EXML_INLINE void normal(Vector<float> x, Vector<float>& cdf, Vector<float>& density) {
  const Vector<float> a = absolute(x), e = exp_nonpositive(x * x * -0.5f), t = 1.0f / (a * 0.47f + 1.0f);
  Vector<float> r = splat(-0.0426137748f);
  r = r * t + 0.227111867f;
  r = r * t - 0.449674643f;
  r = r * t + 0.311017944f;
  r = r * t + 0.0671226373f;
  r = r * t + 0.200334365f;
  r = r * t + 0.186701596f;
  const Vector<float> beyond = e * (r * t);
  cdf = x > 0.0f ? 1.0f - beyond : beyond;
  density = e * 0.398942280f;
}

EXML_INLINE Vector<double> exp_nonpositive(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}
EXML_INLINE Vector<double> tanh(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::tanh(x[i]);
  return x;
}
EXML_INLINE Vector<double> sigmoid(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = exml::sigmoid(x[i]);
  return x;
}
EXML_INLINE void normal(Vector<double> x, Vector<double>& cdf, Vector<double>& density) {
  for (int i = 0; i < kLanes<double>; ++i) {
    double lane_cdf, lane_density;
    exml::normal(x[i], lane_cdf, lane_density);
    cdf[i] = lane_cdf;
    density[i] = lane_density;
  }
}

}  // namespace exml::cpu::EXML_CAPABILITY
