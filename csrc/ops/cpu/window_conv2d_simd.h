// Inner loops of window_conv2d, compiled once for each instruction set by for_each_capability.h.
namespace exml::cpu::EXML_CAPABILITY {

// Accumulators of output channels and pixels that fit the registers, beside the pixels.
#if defined(EXML_AVX512)
constexpr int kAccumulators = 18;
#else
constexpr int kAccumulators = 12;
#endif
constexpr int pixels_of(int outputs) { return kAccumulators / outputs < 8 ? kAccumulators / outputs : 8; }

// kOutputs output channels of kPixels neighbouring pixels. `x` is the first pixel's window, in rows of `row` values, of
// which `span` (a multiple of the vector) count; pixels lie `channels` apart. out[p * outputs + k].
template <int kOutputs, int kPixels, typename A, typename T>
EXML_INLINE void dot_windows(const A* x, const A* windows, int64_t height, int64_t span, int64_t row, int64_t channels,
                             T* out, int64_t outputs) {
  Vector<A> total[kOutputs][kPixels] = {};
  for (int64_t i = 0; i < height; ++i) {
    for (int64_t j = 0; j < span; j += kLanes<A>) {
      const A *values = x + i * row + j, *weights = windows + i * span + j;
      Vector<A> pixels[kPixels];
      for (int p = 0; p < kPixels; ++p) pixels[p] = load(values + p * channels);
      for (int k = 0; k < kOutputs; ++k) {
        const Vector<A> weight = load(weights + k * height * span);
        for (int p = 0; p < kPixels; ++p) total[k][p] += pixels[p] * weight;
      }
    }
  }
  for (int k = 0; k < kOutputs; ++k)
    for (int p = 0; p < kPixels; ++p) narrow(sum<A>(total[k][p]), out[p * outputs + k]);
}

template <int kOutputs, int kPixels, typename A, typename T>
EXML_INLINE void window_row(const A* x, const A* windows, int64_t height, int64_t span, int64_t row, int64_t channels,
                            T* out, int64_t outputs, int64_t width) {
  int64_t j = 0;
  for (; j + kPixels <= width; j += kPixels)
    dot_windows<kOutputs, kPixels>(x + j * channels, windows, height, span, row, channels, out + j * outputs, outputs);
  for (; j < width; ++j)
    dot_windows<kOutputs, 1>(x + j * channels, windows, height, span, row, channels, out + j * outputs, outputs);
}

// One row of the result, all output channels, with as many accumulators at a time as fit the registers.
template <typename A, typename T>
void convolve_row(const A* x, const A* windows, int64_t height, int64_t span, int64_t row, int64_t channels, T* out,
                  int64_t outputs, int64_t width) {
  int64_t k = 0;
  for (; k + 4 <= outputs; k += 4)
    window_row<4, pixels_of(4)>(x, windows + k * height * span, height, span, row, channels, out + k, outputs, width);
  const A* rest = windows + k * height * span;
  if (outputs - k == 3) window_row<3, pixels_of(3)>(x, rest, height, span, row, channels, out + k, outputs, width);
  if (outputs - k == 2) window_row<2, pixels_of(2)>(x, rest, height, span, row, channels, out + k, outputs, width);
  if (outputs - k == 1) window_row<1, pixels_of(1)>(x, rest, height, span, row, channels, out + k, outputs, width);
}

template <typename A, typename T>
void widen_row(const T* __restrict__ from, A* __restrict__ to, int64_t size) {
  for (int64_t i = 0; i < size; ++i) to[i] = widen(from[i]);
}

}  // namespace exml::cpu::EXML_CAPABILITY
