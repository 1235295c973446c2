// Inner loops of soft_cross_entropy, compiled once for each instruction set by for_each_capability.h.
#include "ops/cpu/softmax_simd.h"

namespace exml::cpu::EXML_CAPABILITY {

template <typename A>
EXML_INLINE Vector<A> load_target(const A* target, int64_t k, int lanes) {
  return lanes == kLanes<A> ? load(target + k) : load_first<A>(target + k, lanes, A(0));
}

// -sum_k target_k log p_k with soft targets.
template <typename T>
Accumulator<T> row_loss(const T* logits, const Accumulator<T>* target, int64_t classes, Accumulator<T> top,
                        Accumulator<T> scale, Accumulator<T> lse) {
  using A = Accumulator<T>;
  Vector<A> loss = {};
  along_row(logits, classes, top, scale, [&](int64_t k, int lanes, Vector<A> z) {
    if (lanes == kLanes<A>)
      loss += load(target + k) * (lse - z);
    else
      for (int i = 0; i < lanes; ++i) loss[i] += target[k + i] * (lse - z[i]);
  });
  return sum<A>(loss);
}

// out = pull * (mass * softmax - target). The target is null for class indices; then the caller subtracts it.
template <typename T>
void row_gradient(const T* logits, const Accumulator<T>* target, int64_t classes, Accumulator<T> top,
                  Accumulator<T> scale, Accumulator<T> lse, Accumulator<T> pull, T* out) {
  using A = Accumulator<T>;
  A mass = 1;
  if (target) {
    Vector<A> total = {};
    along_row(logits, classes, top, scale,
              [&](int64_t k, int lanes, Vector<A>) { total += load_target(target, k, lanes); });
    mass = sum<A>(total);
  }
  along_row(logits, classes, top, scale, [&](int64_t k, int lanes, Vector<A> z) {
    Vector<A> g = mass * exp_nonpositive(z - lse);
    if (target) g -= load_target(target, k, lanes);
    g *= pull;
    if (lanes == kLanes<A>)
      store(out + k, g);
    else
      store_first<A>(out + k, lanes, g);
  });
}

}  // namespace exml::cpu::EXML_CAPABILITY
