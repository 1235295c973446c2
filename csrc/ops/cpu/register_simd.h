// Vectors as wide as the registers, for loops that use many vectors at a time: GCC would keep wider ones in memory.
// Included by sources of for_each_capability.h.
namespace exml::cpu::EXML_CAPABILITY {

#if defined(EXML_AVX512)
constexpr int kRegisterBytes = 64;
#elif defined(EXML_AVX2)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

template <typename A>
struct RegisterOf;
template <>
struct RegisterOf<float> {
  typedef float type __attribute__((vector_size(kRegisterBytes)));
  typedef int32_t order __attribute__((vector_size(kRegisterBytes)));
};
template <>
struct RegisterOf<double> {
  typedef double type __attribute__((vector_size(kRegisterBytes)));
  typedef int64_t order __attribute__((vector_size(kRegisterBytes)));
};
template <typename A>
using Register = typename RegisterOf<A>::type;

template <typename A>
EXML_INLINE Register<A> load_register(const A* p) {
  Register<A> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <typename A>
EXML_INLINE void store_register(A* p, Register<A> v) {
  memcpy(p, &v, sizeof v);
}

}  // namespace exml::cpu::EXML_CAPABILITY
