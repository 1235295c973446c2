// Vectors, and their ways to and from memory. Compiled once for each instruction set by for_each_capability.h: GCC
// splits a vector operation into instructions of the function's own target before it inlines the function.
namespace exml::cpu::EXML_CAPABILITY {

// As wide as the registers: GCC keeps wider vectors in memory, and compares them lane by lane.
#if defined(EXML_AVX512)
constexpr int kVectorBytes = 64;
#elif defined(EXML_AVX2)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
  typedef uint8_t bytes __attribute__((vector_size(kVectorBytes / 4)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
  typedef uint8_t bytes __attribute__((vector_size(kVectorBytes / 8)));
};
template <typename A>
using Vector = typename VectorOf<A>::type;
template <typename A>
using Mask = typename VectorOf<A>::mask;
// A byte for each lane.
template <typename A>
using Bytes = typename VectorOf<A>::bytes;
template <typename A>
constexpr int kLanes = kVectorBytes / sizeof(A);

typedef uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

EXML_INLINE Vector<float> load(const float* p) {
  Vector<float> v;
  memcpy(&v, p, sizeof v);
  return v;
}
EXML_INLINE Vector<double> load(const double* p) {
  Vector<double> v;
  memcpy(&v, p, sizeof v);
  return v;
}
EXML_INLINE Vector<float> load(const BFloat16* p) {
  HalfWords half;
  memcpy(&half, p, sizeof half);
#ifdef EXML_AVX512  // one instruction, where the generic conversion takes four
  const Words bits = (Words)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)half);
#else
  const Words bits = __builtin_convertvector(half, Words);
#endif
  return (Vector<float>)(bits << 16);
}

// A scalar or a vector, depending on the type that the caller computes with.
template <typename V>
EXML_INLINE V load_as(const float* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <typename V>
EXML_INLINE V load_as(const double* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

EXML_INLINE void store(float* p, Vector<float> v) { memcpy(p, &v, sizeof v); }
EXML_INLINE void store(double* p, Vector<double> v) { memcpy(p, &v, sizeof v); }
EXML_INLINE void store(BFloat16* p, Vector<float> v) {
#ifdef EXML_AVX512
  if (kRoundsToBFloat16) {  // by one instruction, which GCC offers only to functions that need it
    HalfWords half;
    asm("vcvtneps2bf16 %1, %0" : "=v"(half) : "v"(v));
    memcpy(p, &half, sizeof half);
    return;
  }
#endif
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words chosen = (Words)(v != v) ? Words{} + 0x7fc0 : rounded;
  const HalfWords half = __builtin_convertvector(chosen, HalfWords);
  memcpy(p, &half, sizeof half);
}

// The lanes of a mask as bytes of 0 and 1.
template <typename A>
EXML_INLINE void store_mask(uint8_t* p, Mask<A> mask) {
  const auto bytes = __builtin_convertvector(-mask, Bytes<A>);
  memcpy(p, &bytes, sizeof bytes);
}
template <typename A>
EXML_INLINE Mask<A> load_mask(const uint8_t* p) {
  Bytes<A> bytes;
  memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, Mask<A>) != Mask<A>{};
}

template <typename A>
EXML_INLINE Vector<A> splat(A x) {
  return Vector<A>{} + x;
}

template <typename A>
EXML_INLINE A sum(Vector<A> v) {
  A lanes[kLanes<A>];
  memcpy(lanes, &v, sizeof v);
#pragma GCC unroll 4
  for (int half = kLanes<A> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// A partial vector: lanes from `count` on hold `fill`.
template <typename A, typename T>
EXML_INLINE Vector<A> load_first(const T* p, int64_t count, A fill) {
  Vector<A> v = splat<A>(fill);
  for (int i = 0; i < count; ++i) v[i] = widen(p[i]);
  return v;
}
template <typename A, typename T>
EXML_INLINE void store_first(T* p, int64_t count, Vector<A> v) {
  for (int i = 0; i < count; ++i) narrow(v[i], p[i]);
}

}  // namespace exml::cpu::EXML_CAPABILITY
