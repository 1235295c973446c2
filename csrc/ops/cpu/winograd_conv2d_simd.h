// Inner loops of winograd_conv2d, compiled once for each instruction set by for_each_capability.h.
namespace exml::cpu::EXML_CAPABILITY {

// Rows of a block of the product whose sums stay in registers; a block has two registers of columns.
#if defined(EXML_AVX512)
constexpr int kBlockRows = 14;
#elif defined(EXML_AVX2)
constexpr int kBlockRows = 6;
#else
constexpr int kBlockRows = 4;
#endif
constexpr int kPanelColumns = kPanel;

// kRows x kColumns registers of a b; rows of a lie `row` apart, those of b and c kPanelColumns.
template <int kRows, int kColumns>
EXML_INLINE void product_block(const float* a, int64_t row, const float* b, int64_t depth, float* c) {
  constexpr int n = kLanes<float>;
  Vector<float> total[kRows][kColumns] = {};
  for (int64_t k = 0; k < depth; ++k, b += kPanelColumns) {
    Vector<float> weights[kColumns];
    for (int j = 0; j < kColumns; ++j) weights[j] = load(b + j * n);
    for (int i = 0; i < kRows; ++i) {
      const Vector<float> value = Vector<float>{} + a[i * row + k];
      for (int j = 0; j < kColumns; ++j) total[i][j] += value * weights[j];
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) store(c + i * kPanelColumns + j * n, total[i][j]);
}

template <int kRows, int kColumns>
EXML_INLINE void product_rows(int64_t rows, const float* a, int64_t row, const float* b, int64_t depth, float* c) {
  if (rows == kRows) return product_block<kRows, kColumns>(a, row, b, depth, c);
  if constexpr (kRows > 1) product_rows<kRows - 1, kColumns>(rows, a, row, b, depth, c);
}

// c = a b: a (rows, depth) with rows `row` apart, b (depth, kPanelColumns), c (rows, kPanelColumns), of whose columns
// the first `columns` are needed.
inline void panel_product(const float* a, int64_t row, int64_t rows, const float* b, int64_t depth, int64_t columns,
                          float* c) {
  constexpr int n = kLanes<float>;
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  for (int64_t block = 0; block < blocks; ++block) {  // the heights of blocks differ by at most one row
    const int64_t first = block * rows / blocks, count = (block + 1) * rows / blocks - first;
    const float* values = a + first * row;
    for (int64_t j = 0; j < columns; j += 2 * n) {
      float* out = c + first * kPanelColumns + j;
      if (columns - j > n)
        product_rows<kBlockRows, 2>(count, values, row, b + j, depth, out);
      else
        product_rows<kBlockRows, 1>(count, values, row, b + j, depth, out);
    }
  }
}

// B^T d of Lavin 2016, Eq. 15, for F(4, 3): one line of six pixels.
EXML_INLINE void input_line(const Vector<float>* d, int64_t step, Vector<float>* out, int64_t out_step) {
  const Vector<float> d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const Vector<float> even = d4 - 4.0f * d2, odd = d3 - 4.0f * d1, wide = d4 - d2, tall = 2.0f * (d3 - d1);
  out[0] = 4.0f * d0 - 5.0f * d2 + d4;
  out[out_step] = even + odd;
  out[2 * out_step] = even - odd;
  out[3 * out_step] = wide + tall;
  out[4 * out_step] = wide - tall;
  out[5 * out_step] = 4.0f * d1 - 5.0f * d3 + d5;
}

// A^T m: four outputs of six products.
EXML_INLINE void output_line(const Vector<float>* m, int64_t step, Vector<float>* out, int64_t out_step) {
  const Vector<float> sum12 = m[step] + m[2 * step], difference12 = m[step] - m[2 * step];
  const Vector<float> sum34 = m[3 * step] + m[4 * step], difference34 = m[3 * step] - m[4 * step];
  out[0] = m[0] + sum12 + sum34;
  out[out_step] = difference12 + 2.0f * difference34;
  out[2 * out_step] = sum12 + 4.0f * sum34;
  out[3 * out_step] = difference12 + 8.0f * difference34 + m[5 * step];
}

// B^T d B of the 6x6 pixels that `at` points to, `channels` (at least a vector) of each. Place t of the result begins
// at to + t * pitch.
template <typename T>
void winograd_input(const T* const* at, int64_t channels, float* to, int64_t pitch) {
  for (int64_t first = 0; first < channels; first += kLanes<float>) {
    const int64_t c = std::min<int64_t>(first, channels - kLanes<float>);  // the last step overlaps the one before it
    Vector<float> d[36], half[36], whole[36];
#pragma GCC unroll 36
    for (int i = 0; i < 36; ++i) d[i] = load(at[i] + c);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) input_line(d + j, 6, half + j, 6);
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) input_line(half + 6 * i, 1, whole + 6 * i, 1);
#pragma GCC unroll 36
    for (int i = 0; i < 36; ++i) store(to + i * pitch + c, whole[i]);
  }
}

// A^T m A + bias of a tile: place t of m begins at from + t * pitch. Writes `columns` channels of the `height` x
// `width` pixels that lie in the image; pixels are `channels` apart, rows `row`.
template <typename T>
void winograd_output(const float* from, int64_t pitch, int64_t columns, const float* bias, int64_t height,
                     int64_t width, T* to, int64_t channels, int64_t row) {
  constexpr int64_t n = kLanes<float>;
  for (int64_t k = 0; k < columns; k += n) {
    Vector<float> m[36], half[24], whole[16];
#pragma GCC unroll 36
    for (int i = 0; i < 36; ++i) m[i] = load(from + i * pitch + k);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) output_line(m + j, 6, half + j, 6);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) output_line(half + 6 * i, 1, whole + 4 * i, 1);
    const Vector<float> offset = load(bias + k);
    for (int64_t i = 0; i < height; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        T* pixel = to + i * row + j * channels + k;
        if (k + n <= columns)
          store(pixel, whole[4 * i + j] + offset);
        else
          store_first<float>(pixel, columns - k, whole[4 * i + j] + offset);
      }
    }
  }
}

}  // namespace exml::cpu::EXML_CAPABILITY
