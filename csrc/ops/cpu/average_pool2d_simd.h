// Inner loops of average_pool2d, compiled once for each instruction set by for_each_capability.h; the compiler
// vectorises them.
namespace exml::cpu::EXML_CAPABILITY {

// One row of outputs from `height` rows of x, which lie `row` apart. `line` takes a row of sums.
template <typename A, typename T>
void pool_row(const T* __restrict__ x, A* __restrict__ line, T* __restrict__ out, int64_t height, int64_t row,
              int64_t width, int64_t channels, int64_t outputs) {
  const int64_t read = outputs * width * channels;
  for (int64_t i = 0; i < read; ++i) line[i] = widen(x[i]);
  for (int64_t r = 1; r < height; ++r)
    for (int64_t i = 0; i < read; ++i) line[i] += widen(x[r * row + i]);
  for (int64_t j = 0; j < outputs; ++j) {
    for (int64_t c = 0; c < channels; ++c) {
      const A* from = line + j * width * channels + c;
      A total = from[0];
      for (int64_t p = 1; p < width; ++p) total += from[p * channels];
      line[j * channels + c] = total;  // this place has been read already
    }
  }
  const A share = A(1) / static_cast<A>(height * width);
  for (int64_t i = 0; i < outputs * channels; ++i) narrow(line[i] * share, out[i]);
}

// The first row of x's gradient for one row of outputs. The other rows of the windows are equal to it. `line` takes the
// shares.
template <typename T>
void spread_row(const T* __restrict__ grad, T* __restrict__ line, T* __restrict__ out, int64_t height, int64_t width,
                int64_t channels, int64_t outputs) {
  const auto share = Accumulator<T>(1) / static_cast<Accumulator<T>>(height * width);
  for (int64_t i = 0; i < outputs * channels; ++i) narrow(widen(grad[i]) * share, line[i]);
  for (int64_t j = 0; j < outputs; ++j)
    for (int64_t p = 0; p < width; ++p)
      for (int64_t c = 0; c < channels; ++c) out[(j * width + p) * channels + c] = line[j * channels + c];
}

}  // namespace exml::cpu::EXML_CAPABILITY
