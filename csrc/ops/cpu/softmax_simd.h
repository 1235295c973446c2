// Rows of logits, for the inner loops of the losses over them: included by their sources, once for each instruction
// set, and therefore without a guard.
namespace exml::cpu::EXML_CAPABILITY {

// Calls f(first class, lanes in use, vector of logits) along a row; lanes beyond the row hold -infinity.
template <typename T, typename F>
EXML_INLINE void along_logits(const T* logits, int64_t classes, F f) {
  using A = Accumulator<T>;
  constexpr int kWidth = kLanes<A>;
  int64_t k = 0;
  for (; k + kWidth <= classes; k += kWidth) f(k, kWidth, load(logits + k));
  if (k < classes) f(k, static_cast<int>(classes - k), load_first<A>(logits + k, classes - k, A(-INFINITY)));
}

template <typename T>
Accumulator<T> row_top(const T* logits, int64_t classes) {
  using A = Accumulator<T>;
  Vector<A> largest = splat(A(-INFINITY));
  along_logits(logits, classes, [&](int64_t, int, Vector<A> z) { largest = z > largest ? z : largest; });
  A top = largest[0];
  for (int i = 1; i < kLanes<A>; ++i) top = largest[i] > top ? largest[i] : top;
  return top;
}

// As along_logits, with (logits - top) / temperature: differences of large logits lose nothing.
template <typename T, typename F>
EXML_INLINE void along_row(const T* logits, int64_t classes, Accumulator<T> top, Accumulator<T> scale, F f) {
  along_logits(logits, classes, [&](int64_t k, int lanes, auto z) { f(k, lanes, (z - top) * scale); });
}

// The log-sum-exp of (logits - top) / temperature.
template <typename T>
Accumulator<T> row_lse(const T* logits, int64_t classes, Accumulator<T> top, Accumulator<T> scale) {
  using A = Accumulator<T>;
  Vector<A> total = {};
  along_row(logits, classes, top, scale, [&](int64_t, int, Vector<A> z) { total += exp_nonpositive(z); });
  return std::log(sum<A>(total));
}

}  // namespace exml::cpu::EXML_CAPABILITY
