// The formulas of activation.h, for scalars and for the compiler's vectors: included in every namespace that has its
// own tanh, sigmoid and normal. V: scalar or vector of A. The comparisons are written so that NaN in gives NaN out.

template <typename V, typename A>
EXML_HD V clamped(V z, A low, A high) {
  const V least = V{} + low, most = V{} + high;
  z = z < least ? least : z;
  return z > most ? most : z;
}

// 2 sqrt(2 / pi) (z + 0.044715 z^3): gelu_tanh is z sigmoid of it (Hendrycks and Gimpel, 2016), as is silu of z.
template <typename A, typename V>
EXML_HD V gelu_inner(V z) {
  return z * (z * z * A(0.044715) + A(1)) * A(1.5957691216057307117);
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
  if constexpr (activation == Activation::gelu_tanh) return z * sigmoid(gelu_inner<A>(z));
  if constexpr (activation == Activation::tanh) return tanh(z);
  return z;
}

// act'(z) g. z is clamped, because infinity times 0 would be NaN. The smooth derivatives are constant up to rounding
// beyond the clamp.
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
    // act'(z) = 1 - act'(-z), and 1 - sigmoid is exact enough only below zero.
    const V bounded = clamped(z, A(-40), A(40)), below = z > zero ? -bounded : bounded;
    const V s = sigmoid(gelu_inner<A>(below));
    const V inner = below * below * A(3 * 0.044715 * 1.5957691216057307117) + A(1.5957691216057307117);
    const V derivative = s * (below * (A(1) - s) * inner + A(1)), reflected = A(1) - derivative;
    return g * (z > zero ? reflected : derivative);
  }
  if constexpr (activation == Activation::tanh) {
    const V t = tanh(z);
    return g * (A(1) - t * t);
  }
  return g;
}
