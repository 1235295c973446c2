// The formulas of jensen_shannon.h, for scalars and for the compiler's vectors: included in every namespace that has
// its own half_log_mean_exp. V: scalar or vector of A. p and q are the two probabilities of a class, and m = (p + q)
// / 2.

// Half of (logit - top) / temperature, top being the row's largest logit. Differences of large logits lose nothing, and
// halves do not overflow: they, and everything computed from them, are finite wherever the logits are.
template <typename V, typename A>
EXML_HD V half_below_top(V logit, A top, A scale) {
  return (logit * A(0.5) - top * A(0.5)) * scale;
}

// (log q - log p) / 2 from what half_below_top gives; shift: half of q's log-sum-exp less p's.
template <typename V, typename A>
EXML_HD V half_log_odds(V half_p, V half_q, A shift) {
  return (half_q - half_p) - shift;
}

// log(p / m) / 2 and log(q / m) / 2. Nothing overflows, and nothing is lost where p is nearly q.
template <typename V>
EXML_HD void half_log_ratios(V half_odds, V& of_p, V& of_q) {
  const V zero = V{}, above = half_odds < zero ? zero : half_odds, below = half_odds > zero ? zero : -half_odds;
  const V distance = above + below, mean = half_log_mean_exp(V(-distance - distance));
  of_p = -(above + mean);
  of_q = -(below + mean);
}

// The class's part of the divergence. A p that underflowed to 0 adds 0, because its ratio is finite. The ratio of an
// infinite logit is not finite, so that the part is NaN.
template <typename V>
EXML_HD V divergence(V p, V q, V half_odds) {
  V of_p, of_q;
  half_log_ratios(half_odds, of_p, of_q);
  return p * of_p + q * of_q;
}
