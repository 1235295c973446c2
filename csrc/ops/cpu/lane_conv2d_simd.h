// Inner loops of lane_conv2d, compiled once for each instruction set by for_each_capability.h. A plane of the scratch
// memory holds a channel of kLanes<A> images: [row][column][image].
namespace exml::cpu::EXML_CAPABILITY {

#if defined(EXML_AVX512)
constexpr int kTiles = 24, kTileOutputs = 8;
#else
constexpr int kTiles = 12, kTileOutputs = 6;
#endif
constexpr int kMostPixels = 8, kMostTaps = 5;

// How many images are convolved at a time.
template <typename A>
int64_t lane_images(A) {
  return kLanes<A>;
}

// [a0, b0, a1, b1, ...] of the lower or upper halves.
template <typename A, int kUpper, int... kLane>
EXML_INLINE Vector<A> interleave(Vector<A> a, Vector<A> b, std::integer_sequence<int, kLane...>) {
  constexpr int first = kUpper * kLanes<A> / 2;
#ifdef __clang__
  return __builtin_shufflevector(a, b, (first + kLane / 2 + kLane % 2 * kLanes<A>)...);
#else
  return __builtin_shuffle(a, b, Mask<A>{(first + kLane / 2 + kLane % 2 * kLanes<A>)...});
#endif
}

// A square matrix. Each pass takes the highest bit of the row's number over to the lane's.
template <typename A>
EXML_INLINE void transpose(Vector<A>* v) {
  constexpr int n = kLanes<A>;
  using Order = std::make_integer_sequence<int, n>;
#pragma GCC unroll 4
  for (int pass = 1; pass < n; pass *= 2) {
    Vector<A> next[n];
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave<A, 0>(v[i], v[i + n / 2], Order());
      next[2 * i + 1] = interleave<A, 1>(v[i], v[i + n / 2], Order());
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) v[i] = next[i];
  }
}

// `size` values of each of `count` images, which lie `size` apart, to the places that `place` gives. Images beyond
// `count` become zeros.
template <typename A, typename T>
void to_lanes(const T* from, int64_t size, int64_t count, const int32_t* place, A* to) {
  constexpr int64_t n = kLanes<A>;
  if (size < n) {
    for (int64_t l = 0; l < size; ++l)
      for (int64_t i = 0; i < n; ++i) to[place[l] * n + i] = i < count ? widen(from[i * size + l]) : A(0);
    return;
  }
  for (int64_t first = 0; first < size; first += n) {
    const int64_t l = std::min(first, size - n);  // the last step overlaps the one before it
    Vector<A> v[n];
    for (int i = 0; i < n; ++i) v[i] = i < count ? load(from + i * size + l) : Vector<A>{};
    transpose<A>(v);
    for (int i = 0; i < n; ++i) store(to + place[l + i] * n, v[i]);
  }
}

template <typename A, typename T>
void from_lanes(const A* from, int64_t size, int64_t count, const int32_t* place, T* to) {
  constexpr int64_t n = kLanes<A>;
  if (size < n) {
    for (int64_t l = 0; l < size; ++l)
      for (int64_t i = 0; i < count; ++i) narrow(from[place[l] * n + i], to[i * size + l]);
    return;
  }
  for (int64_t first = 0; first < size; first += n) {
    const int64_t l = std::min(first, size - n);
    Vector<A> v[n];
    for (int i = 0; i < n; ++i) v[i] = load(from + place[l + i] * n);
    transpose<A>(v);
    for (int i = 0; i < count; ++i) store(to + i * size + l, v[i]);
  }
}

// kPixels neighbouring pixels of kOutputs channels, which lie `plane` apart in `out`. `x` is the first pixel's window
// in the first of `rows` rows; weights [channel][row of taps][tap][output].
template <int kOutputs, int kPixels, typename A>
EXML_INLINE void lane_tile(const A* x, const A* weights, const A* bias, int64_t rows, const LaneShape& s, A* out,
                           int64_t plane) {
  constexpr int n = kLanes<A>;
  Vector<A> total[kOutputs][kPixels];
  for (int k = 0; k < kOutputs; ++k)
    for (int p = 0; p < kPixels; ++p) total[k][p] = Vector<A>{} + bias[k];
  for (int64_t c = 0; c < s.channels; ++c) {
    for (int64_t i = 0; i < rows; ++i) {
      const A* values = x + (c * s.plane + i * s.row) * n;
      const A* weight = weights + (c * s.kernel_height + i) * s.kernel_width * kOutputs;
      for (int64_t j = 0; j < s.kernel_width; ++j, values += n, weight += kOutputs) {
        Vector<A> pixels[kPixels];
        for (int p = 0; p < kPixels; ++p) pixels[p] = load(values + p * n);
        for (int k = 0; k < kOutputs; ++k) {
          const Vector<A> w = Vector<A>{} + weight[k];
          for (int p = 0; p < kPixels; ++p) total[k][p] += pixels[p] * w;
        }
      }
    }
  }
  for (int k = 0; k < kOutputs; ++k)
    for (int p = 0; p < kPixels; ++p) store(out + (k * plane + p) * n, total[k][p]);
}

template <int kOutputs, int kPixels, typename A>
EXML_INLINE void lane_pixels(int64_t count, const A* x, const A* weights, const A* bias, int64_t rows,
                             const LaneShape& s, A* out, int64_t plane) {
  if (count == kPixels) return lane_tile<kOutputs, kPixels>(x, weights, bias, rows, s, out, plane);
  if constexpr (kPixels > 1) lane_pixels<kOutputs, kPixels - 1>(count, x, weights, bias, rows, s, out, plane);
}

// All rows of kOutputs channels; rows of taps beyond the image are left out.
template <int kOutputs, typename A>
void lane_rows(const A* x, const A* weights, const A* bias, const LaneShape& s, A* out) {
  constexpr int n = kLanes<A>, kPixels = kTiles / kOutputs < kMostPixels ? kTiles / kOutputs : kMostPixels;
  const int64_t tiles = (s.out_width + kPixels - 1) / kPixels;
  for (int64_t i = 0; i < s.out_height; ++i) {
    const int64_t first = std::max<int64_t>(0, s.top - i);
    const int64_t rows = std::min(s.kernel_height, s.height + s.top - i) - first;
    const A* taps = weights + first * s.kernel_width * kOutputs;
    for (int64_t t = 0; t < tiles; ++t) {  // the widths of tiles differ by at most one pixel
      const int64_t begin = t * s.out_width / tiles, end = (t + 1) * s.out_width / tiles;
      lane_pixels<kOutputs, kPixels>(end - begin, x + ((i + first - s.top) * s.row + begin) * n, taps, bias, rows, s,
                                     out + (i * s.out_width + begin) * n, s.out_plane);
    }
  }
}

template <int kOutputs, typename A>
EXML_INLINE void lane_outputs(int64_t count, const A* x, const A* weights, const A* bias, const LaneShape& s, A* out) {
  if (count == kOutputs) return lane_rows<kOutputs>(x, weights, bias, s, out);
  if constexpr (kOutputs > 1) lane_outputs<kOutputs - 1>(count, x, weights, bias, s, out);
}

// Output channels of a block. The last block may have fewer.
inline int64_t lane_block(int64_t outputs, int64_t most) {
  const int64_t blocks = (outputs + most - 1) / most;
  return (outputs + blocks - 1) / blocks;
}

// Brings weights into the order that lane_convolve reads: for each block of outputs [channel][tap][output]. The
// adjoint's outputs are the channels of the weights (K, C, h, w), and its taps are in reverse order.
template <typename A, typename T>
void lane_weights(const T* weights, int64_t outputs, int64_t channels, int64_t taps, bool adjoint, A* to) {
  const int64_t block = lane_block(outputs, kTileOutputs);
  for (int64_t first = 0; first < outputs; first += block) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < taps; ++t) {
        for (int64_t k = first; k < first + block && k < outputs; ++k) {
          const int64_t at = adjoint ? (c * outputs + k) * taps + taps - 1 - t : (k * channels + c) * taps + t;
          *to++ = widen(weights[at]);
        }
      }
    }
  }
}

// A convolution of kLanes<A> images.
template <typename A>
void lane_convolve(const A* x, const A* weights, const A* bias, int64_t outputs, const LaneShape& s, A* out) {
  const int64_t block = lane_block(outputs, kTileOutputs), taps = s.channels * s.kernel_height * s.kernel_width;
  for (int64_t k = 0; k < outputs; k += block)
    lane_outputs<kTileOutputs>(std::min(block, outputs - k), x, weights + k * taps, bias + k, s,
                               out + k * s.out_plane * kLanes<A>);
}

// total[k][j] += sum over pixels of grad[k] times x shifted by tap j of one row of taps. `totals` (kOutputs, taps of a
// filter, lanes).
template <int kOutputs, int kTaps, typename A>
void lane_taps(const A* x, const A* grad, int64_t rows, const LaneShape& s, A* totals, int64_t taps) {
  constexpr int n = kLanes<A>;
  Vector<A> total[kOutputs][kTaps];
  for (int k = 0; k < kOutputs; ++k)
    for (int j = 0; j < kTaps; ++j) total[k][j] = load(totals + (k * taps + j) * n);
  for (int64_t i = 0; i < rows; ++i) {
    const A *values = x + i * s.row * n, *pulls = grad + i * s.out_width * n;
    for (int64_t p = 0; p < s.out_width; ++p, values += n, pulls += n) {
      Vector<A> pixels[kTaps];
      for (int j = 0; j < kTaps; ++j) pixels[j] = load(values + j * n);
      for (int k = 0; k < kOutputs; ++k) {
        const Vector<A> pull = load(pulls + k * s.out_plane * n);
        for (int j = 0; j < kTaps; ++j) total[k][j] += pixels[j] * pull;
      }
    }
  }
  for (int k = 0; k < kOutputs; ++k)
    for (int j = 0; j < kTaps; ++j) store(totals + (k * taps + j) * n, total[k][j]);
}

template <int kOutputs, int kTaps, typename A>
EXML_INLINE void lane_some_taps(int64_t outputs, int64_t count, const A* x, const A* grad, int64_t rows,
                                const LaneShape& s, A* totals, int64_t taps) {
  if constexpr (kOutputs * kTaps <= kTiles)
    if (outputs == kOutputs && count == kTaps) return lane_taps<kOutputs, kTaps>(x, grad, rows, s, totals, taps);
  if constexpr (kOutputs > 1)
    if (outputs < kOutputs) return lane_some_taps<kOutputs - 1, kTaps>(outputs, count, x, grad, rows, s, totals, taps);
  if constexpr (kTaps > 1) lane_some_taps<kOutputs, kTaps - 1>(outputs, count, x, grad, rows, s, totals, taps);
}

// Adds the gradient of the weights of kLanes<A> images to totals (K, C, h, w, lanes).
template <typename A>
void lane_correlate(const A* x, const A* grad, int64_t outputs, const LaneShape& s, A* totals) {
  constexpr int n = kLanes<A>;
  const int64_t taps = s.channels * s.kernel_height * s.kernel_width;
  const int64_t width = lane_block(s.kernel_width, kMostTaps);
  const int64_t block = lane_block(outputs, kTiles / width < kTileOutputs ? kTiles / width : kTileOutputs);
  for (int64_t k = 0; k < outputs; k += block) {
    for (int64_t c = 0; c < s.channels; ++c) {
      for (int64_t i = 0; i < s.kernel_height; ++i) {
        const int64_t first = std::max<int64_t>(0, s.top - i);
        const int64_t rows = std::min(s.out_height, s.height + s.top - i) - first;
        if (rows <= 0) continue;
        for (int64_t j = 0; j < s.kernel_width; j += width)
          lane_some_taps<kTileOutputs, kMostTaps>(
              std::min(block, outputs - k), std::min(width, s.kernel_width - j),
              x + (c * s.plane + (first + i - s.top) * s.row + j) * n,
              grad + (k * s.out_plane + first * s.out_width) * n, rows, s,
              totals + ((k * s.channels + c) * s.kernel_height * s.kernel_width + i * s.kernel_width + j) * n, taps);
      }
    }
  }
}

// Sums over the lanes.
template <typename A, typename T>
void lane_sums(const A* totals, int64_t size, T* out) {
  for (int64_t l = 0; l < size; ++l) {
    A total = 0;
    for (int i = 0; i < kLanes<A>; ++i) total += totals[l * kLanes<A> + i];
    narrow(total, out[l]);
  }
}

}  // namespace exml::cpu::EXML_CAPABILITY
