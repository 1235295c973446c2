// Inner loop of jitter_flip, compiled once for each instruction set by for_each_capability.h; the compiler vectorises
// it.
namespace exml::cpu::EXML_CAPABILITY {

// kStep: distance of consecutive values of `from`; 0 for a distance that is given in `step`.
template <int kFrom, int kTo, typename T, typename U>
EXML_INLINE void copy_strided(const T* __restrict__ x, int64_t from, U* __restrict__ out, int64_t to, int64_t size) {
  const int64_t a = kFrom ? kFrom : from, b = kTo ? kTo : to;
  for (int64_t i = 0; i < size; ++i) narrow(Accumulator<U>(widen(x[i * a])), out[i * b]);
}

// `size` values `from` apart, written `to` apart in another dtype.
template <typename T, typename U>
void copy_run(const T* x, int64_t from, U* out, int64_t to, int64_t size) {
  if (to == 1 && from == 1)
    copy_strided<1, 1>(x, from, out, to, size);
  else if (to == 1 && from == -1)
    copy_strided<-1, 1>(x, from, out, to, size);
  else
    copy_strided<0, 0>(x, from, out, to, size);
}

}  // namespace exml::cpu::EXML_CAPABILITY
