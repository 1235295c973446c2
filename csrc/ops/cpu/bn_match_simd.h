// Inner loops of bn_match, compiled once for each instruction set by for_each_capability.h.
namespace exml::cpu::EXML_CAPABILITY {

// Moments of a run of contiguous values. Runs longer than kRun are combined in double.
template <typename T>
Moments<double> run_moments(const T* x, int64_t size) {
  using A = Accumulator<T>;
  constexpr int kWidth = kLanes<A>;
  constexpr int64_t kRun = 64 * kWidth;  // a lane adds 32 values
  Moments<double> total;
  for (int64_t start = 0; start < size; start += kRun) {
    const int64_t end = start + kRun < size ? start + kRun : size;
    const A shift = widen(x[start]);
    Vector<A> sums[2] = {}, squares[2] = {};
    int64_t i = start;
    for (; i + 2 * kWidth <= end; i += 2 * kWidth) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const Vector<A> d = load(x + i + v * kWidth) - shift;
        sums[v] += d;
        squares[v] += d * d;
      }
    }
    for (; i < end; i += kWidth) {
      const Vector<A> d = (end - i >= kWidth ? load(x + i) : load_first<A>(x + i, end - i, shift)) - shift;
      sums[0] += d;
      squares[0] += d * d;
    }
    total = combine(total, from_shifted_sums<double>(end - start, shift, sum<A>(sums[0] + sums[1]),
                                                     sum<A>(squares[0] + squares[1])));
  }
  return total;
}

// Adds to moments[0..width) those of `rows` values each, `stride` apart: kVectors vectors of channels side by side.
template <typename T, int kVectors>
EXML_INLINE void tile_moments(const T* x, int64_t rows, int64_t stride, Moments<double>* moments) {
  using A = Accumulator<T>;
  constexpr int kWidth = kLanes<A>;
  Vector<A> shift[kVectors], sums[kVectors] = {}, squares[kVectors] = {};
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) shift[v] = load(x + v * kWidth);
  for (int64_t r = 0; r < rows; ++r, x += stride) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Vector<A> d = load(x + v * kWidth) - shift[v];
      sums[v] += d;
      squares[v] += d * d;
    }
  }
  for (int v = 0; v < kVectors; ++v)
    for (int i = 0; i < kWidth; ++i) {
      Moments<double>& m = moments[v * kWidth + i];
      m = combine(m, from_shifted_sums<double>(rows, shift[v][i], sums[v][i], squares[v][i]));
    }
}

// Adds to moments[c] those of channel c over `rows` rows of `channels` values.
template <typename T>
void row_moments(const T* x, int64_t rows, int64_t channels, Moments<double>* moments) {
  using A = Accumulator<T>;
  constexpr int kWidth = kLanes<A>;
  // A tile has as many rows as the second-level cache holds, so that memory is read once.
  const int64_t block = std::max<int64_t>(64, std::min<int64_t>(1024, 65536 / channels));
  for (int64_t start = 0; start < rows; start += block, x += block * channels) {
    const int64_t count = std::min(block, rows - start);
    int64_t c = 0;
    for (; c + 4 * kWidth <= channels; c += 4 * kWidth) tile_moments<T, 4>(x + c, count, channels, moments + c);
    for (; c + kWidth <= channels; c += kWidth) tile_moments<T, 1>(x + c, count, channels, moments + c);
    for (; c < channels; ++c) {
      const A shift = widen(x[c]);
      A sums = 0, squares = 0;
      for (int64_t r = 0; r < count; ++r) {
        const A d = widen(x[r * channels + c]) - shift;
        sums += d;
        squares += d * d;
      }
      moments[c] = combine(moments[c], from_shifted_sums<double>(count, shift, sums, squares));
    }
  }
}

// out = offset + slope * (x - mean), one set of coefficients for the whole run.
template <typename T>
void run_gradient(const T* x, T* out, int64_t size, PixelGradient<Accumulator<T>> g) {
  using A = Accumulator<T>;
  constexpr int kWidth = kLanes<A>;
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) store(out + i, (load(x + i) - g.mean) * g.slope + g.offset);
  for (; i < size; ++i) narrow((widen(x[i]) - g.mean) * g.slope + g.offset, out[i]);
}

// The same with one set of coefficients a column: arrays offset, slope, mean of `channels` values.
template <typename T>
void row_gradient(const T* x, T* out, int64_t rows, int64_t channels, const Accumulator<T>* offset,
                  const Accumulator<T>* slope, const Accumulator<T>* mean) {
  using A = Accumulator<T>;
  constexpr int kWidth = kLanes<A>;
  for (int64_t r = 0; r < rows; ++r, x += channels, out += channels) {
    int64_t c = 0;
    for (; c + kWidth <= channels; c += kWidth)
      store(out + c, (load(x + c) - load(mean + c)) * load(slope + c) + load(offset + c));
    for (; c < channels; ++c) narrow((widen(x[c]) - mean[c]) * slope[c] + offset[c], out[c]);
  }
}

}  // namespace exml::cpu::EXML_CAPABILITY
