// The formulas of activation.h, for scalars and for the compiler's vectors: included in every namespace that has its
// own tanh, sigmoid and normal. V: scalar or vector of A. Comparisons are such that a NaN stays one.

template <typename V, typename A>
EXML_HD V clamped(V z, A low, A high) {
  const V least = V{} + low, most = V{} + high;
  z = z < least ? least : z;
  return z > most ? most : z;
}

// tanh(sqrt(2 / pi) (z + 0.044715 z^3)), the inner function of gelu's approximation (Hendrycks and Gimpel, 2016).
template <typename A, typename V>
EXML_HD V gelu_inner(V z) {
  return tanh(V(z * (z * z * A(0.044715) + A(1)) * A(0.79788456080286535588)));
}

// act(z). slope: of leaky_relu below zero.
template <Activation activation, typename V, typename A>
EXML_HD V activate(V z, A slope) {
  const V zero = V{};
  if constexpr (activation == Activation::relu) return z < zero ? zero : z;
  if constexpr (activation == Activation::relu6) return clamped(z, A(0), A(6));
  if constexpr (activation == Activation::silu) return z * sigmoid(z);
  if constexpr (activation == Activation::hardswish) return z * clamped(V(z + A(3)), A(0), A(6)) * (A(1) / A(6));
  if constexpr (activation == Activation::leaky_relu) {
    const V scaled = z * slope;
    return z > zero ? z : scaled;
  }
  if constexpr (activation == Activation::gelu) {
    V cdf, density;
    normal(z, cdf, density);
    return z * cdf;
  }
  if constexpr (activation == Activation::gelu_tanh) return z * (gelu_inner<A>(z) + A(1)) * A(0.5);
  if constexpr (activation == Activation::tanh) return tanh(z);
  return z;
}

// act'(z) g. The smooth derivatives are constant to rounding where z is clamped, and would be infinity times 0 beyond.
template <Activation activation, typename V, typename A>
EXML_HD V pull_back(V z, V g, A slope) {
  const V zero = V{};
  if constexpr (activation == Activation::relu) return z <= zero ? zero : g;
  if constexpr (activation == Activation::relu6) {
    g = z <= zero ? zero : g;
    return z >= V{} + A(6) ? zero : g;
  }
  if constexpr (activation == Activation::silu) {
    const V bounded = clamped(z, A(-1000), A(1000)), s = sigmoid(bounded);
    return g * s * (bounded * (A(1) - s) + A(1));
  }
  if constexpr (activation == Activation::hardswish) {
    const V inside = g * (z * (A(1) / A(3)) + A(0.5));
    g = z >= V{} + A(3) ? g : inside;
    return z <= V{} - A(3) ? zero : g;
  }
  if constexpr (activation == Activation::leaky_relu) {
    const V scaled = g * slope;
    return z > zero ? g : scaled;
  }
  if constexpr (activation == Activation::gelu) {
    const V bounded = clamped(z, A(-40), A(40));
    V cdf, density;
    normal(bounded, cdf, density);
    return g * (bounded * density + cdf);
  }
  if constexpr (activation == Activation::gelu_tanh) {
    const V bounded = clamped(z, A(-40), A(40)), t = gelu_inner<A>(bounded);
    const V inner = bounded * bounded * A(3 * 0.044715 * 0.79788456080286535588) + A(0.79788456080286535588);
    return g * (bounded * (A(1) - t * t) * inner + t + A(1)) * A(0.5);
  }
  if constexpr (activation == Activation::tanh) {
    const V t = tanh(z);
    return g * (A(1) - t * t);
  }
  return g;
}
