// Inner loop of adam_clip_, compiled once for each instruction set by for_each_capability.h; the compiler vectorises
// it.
namespace exml::cpu::EXML_CAPABILITY {

// kRow: low and high hold a value for each pixel of the run; otherwise one value for all pixels.
template <bool kRow, typename A, typename G>
void adam_run(A* __restrict__ x, const G* __restrict__ grad, A* __restrict__ m, A* __restrict__ v,
              const A* __restrict__ low, const A* __restrict__ high, int64_t size, const AdamStep<A>& shared) {
  const AdamStep<A> step = shared;
  for (int64_t i = 0; i < size; ++i)
    x[i] = adam_clip<A>(step, x[i], widen(grad[i]), m[i], v[i], low[kRow ? i : 0], high[kRow ? i : 0]);
}

}  // namespace exml::cpu::EXML_CAPABILITY
