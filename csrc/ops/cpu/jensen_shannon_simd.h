// Inner loops of jensen_shannon, compiled once for each instruction set by for_each_capability.h.
#include "ops/cpu/softmax_simd.h"

namespace exml::cpu::EXML_CAPABILITY {

// log((1 + e^x) / 2) / 2 for x <= 0 within 4 ulp: atanh(s) with s = t / (t + 4) and t = e^x - 1, and for |s| <= 1/3 its
// Taylor polynomial.
EXML_INLINE Vector<float> half_log_mean_exp(Vector<float> x) {
  Vector<float> scale, tail;
  exp_parts(x, scale, tail);
  const Vector<float> t = scale * tail + (scale - 1.0f), s = t / (t + 4.0f), square = s * s;
  Vector<float> p = splat(1.0f / 13);
  p = p * square + 1.0f / 11;
  p = p * square + 1.0f / 9;
  p = p * square + 1.0f / 7;
  p = p * square + 1.0f / 5;
  p = p * square + 1.0f / 3;
  return s * (p * square) + s;
}

EXML_INLINE Vector<double> half_log_mean_exp(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = exml::half_log_mean_exp(x[i]);
  return x;
}

#include "math/jensen_shannon_formulas.h"

// A row of logits with its largest and the log-sum-exp of (logits - top) / temperature.
template <typename T>
struct Row {
  const T* logits;
  Accumulator<T> top, lse;
};

// Calls f(first class, lanes in use, vectors of half_below_top of both rows) along two rows. The values in lanes beyond
// the rows are not finite.
template <typename T, typename F>
EXML_INLINE void along_rows(const Row<T>& row, const Row<T>& other, int64_t classes, Accumulator<T> scale, F f) {
  using A = Accumulator<T>;
  along_logits(row.logits, classes, [&](int64_t k, int lanes, Vector<A> z) {
    const T* from = other.logits + k;
    const Vector<A> y = lanes == kLanes<A> ? load(from) : load_first<A>(from, lanes, A(-INFINITY));
    f(k, lanes, half_below_top(z, row.top, scale), half_below_top(y, other.top, scale));
  });
}

template <typename A>
EXML_INLINE void add_first(Vector<A>& total, int lanes, Vector<A> v) {
  if (lanes == kLanes<A>)
    total += v;
  else
    for (int i = 0; i < lanes; ++i) total[i] += v[i];
}

// Also gives the log-sum-exps of both rows.
template <typename T>
Accumulator<T> row_divergence(const T* logits, const T* other_logits, int64_t classes, Accumulator<T> scale,
                              Accumulator<T>* lse, Accumulator<T>* other_lse) {
  using A = Accumulator<T>;
  const A top = row_top(logits, classes), other_top = row_top(other_logits, classes);
  *lse = row_lse(logits, classes, top, scale);
  *other_lse = row_lse(other_logits, classes, other_top, scale);
  const Row<T> row{logits, top, *lse}, other{other_logits, other_top, *other_lse};
  const A shift = other.lse / 2 - row.lse / 2;
  Vector<A> total = {};
  along_rows(row, other, classes, scale, [&](int64_t, int lanes, Vector<A> z, Vector<A> y) {
    const Vector<A> p = exp_nonpositive(z + z - row.lse), q = exp_nonpositive(y + y - other.lse);
    add_first<A>(total, lanes, divergence(p, q, half_log_odds(z, y, shift)));
  });
  return sum<A>(total);
}

// out = pull * p * (mean - ratio), ratio being log(p / m) / 2 and mean its expectation under p: minus the divergence's
// gradient in logits / temperature.
template <typename T>
void row_divergence_gradient(const T* logits, const T* other_logits, int64_t classes, Accumulator<T> scale,
                             Accumulator<T> lse, Accumulator<T> other_lse, Accumulator<T> pull, T* out) {
  using A = Accumulator<T>;
  const Row<T> row{logits, row_top(logits, classes), lse};
  const Row<T> other{other_logits, row_top(other_logits, classes), other_lse};
  const A shift = other.lse / 2 - row.lse / 2;
  const auto ratio = [&](Vector<A> z, Vector<A> y) {
    Vector<A> of_p, of_q;
    half_log_ratios(half_log_odds(z, y, shift), of_p, of_q);
    return of_p;
  };
  Vector<A> total = {};
  along_rows(row, other, classes, scale, [&](int64_t, int lanes, Vector<A> z, Vector<A> y) {
    add_first<A>(total, lanes, exp_nonpositive(z + z - row.lse) * ratio(z, y));
  });
  const A mean = sum<A>(total);
  along_rows(row, other, classes, scale, [&](int64_t k, int lanes, Vector<A> z, Vector<A> y) {
    const Vector<A> g = pull * exp_nonpositive(z + z - row.lse) * (mean - ratio(z, y));
    if (lanes == kLanes<A>)
      store(out + k, g);
    else
      store_first<A>(out + k, lanes, g);
  });
}

}  // namespace exml::cpu::EXML_CAPABILITY
