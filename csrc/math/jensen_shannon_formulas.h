// The formulas of jensen_shannon.h, for scalars and for the compiler's vectors: included in every namespace that has
// its own half_log_mean_exp. V: scalar or vector of A. p and q are the two probabilities of a class, and m = (p + q)
// / 2.

// (log q - log p) / 2 from logits over temperature; shift: half of q's log-sum-exp less p's. Halves do not
// overflow: they, and everything computed from them, are finite wherever the logits are.
template <typename V, typename A>
EXML_HD V half_log_odds(V logit_p, V logit_q, A shift) {
  return (logit_q * A(0.5) - logit_p * A(0.5)) - shift;
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
