#include "ops/cuda/jitter_flip_kernel.cu"
#include "tests/arrays.h"

namespace exml::cuda {
namespace {

using namespace exml::tests;

struct Case {
  int64_t batch, channels, height, width;
  bool x_last, out_last, per_image, wrap;
};

void strides(const Case& s, bool channels_last, int64_t out[4]) {
  const int64_t planes[4] = {s.channels * s.height * s.width, s.height * s.width, s.width, 1};
  const int64_t rows[4] = {s.channels * s.height * s.width, 1, s.width * s.channels, s.channels};
  for (int i = 0; i < 4; ++i) out[i] = channels_last ? rows[i] : planes[i];
}

// The definition, by shifting and mirroring coordinates one after the other; the adjoint scatters instead of gathering.
template <typename T>
std::vector<double> naive(const Case& s, const std::vector<T>& x, const std::vector<int64_t>& shift,
                          const std::vector<char>& flip, bool adjoint) {
  int64_t from[4], to[4];
  strides(s, s.x_last, from);
  strides(s, s.out_last, to);
  std::vector<double> out(x.size());
  for (int64_t n = 0; n < s.batch; ++n)
    for (int64_t c = 0; c < s.channels; ++c)
      for (int64_t i = 0; i < s.height; ++i)
        for (int64_t j = 0; j < s.width; ++j) {
          int64_t row = i + shift[s.per_image ? 2 * n : 0], column = j + shift[s.per_image ? 2 * n + 1 : 1];
          if (s.wrap) {
            row = (row % s.height + s.height) % s.height;
            column = (column % s.width + s.width) % s.width;
          }
          if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
          if (flip[s.per_image ? n : 0]) column = s.width - 1 - column;
          const auto place = [&](const int64_t* strides, int64_t y, int64_t z) {
            return n * strides[0] + c * strides[1] + y * strides[2] + z * strides[3];
          };
          if (adjoint)
            out[place(to, i, j)] = widen(x[place(from, row, column)]);
          else
            out[place(to, row, column)] = widen(x[place(from, i, j)]);
        }
  return out;
}

template <typename T, typename U>
void check(const Case& s, const std::vector<int64_t>& shift, const std::vector<char>& flip) {
  SCOPED_TRACE(std::to_string(s.batch) + "x" + std::to_string(s.channels) + "x" + std::to_string(s.height) + "x" +
               std::to_string(s.width) + (s.x_last ? " from channels_last" : "") + (s.out_last ? " to" : "") +
               (s.wrap ? " wrap" : " zero"));
  const auto x = normal<T>(s.batch * s.channels * s.height * s.width, 0, 1, 1);
  for (const bool adjoint : {false, true}) {
    auto out = unwritten<U>(x.size());
    JitterFlipArguments<T, U> a{x.data(),
                                {},
                                out.data(),
                                s.out_last,
                                s.batch,
                                s.channels,
                                s.height,
                                s.width,
                                shift.data(),
                                reinterpret_cast<const bool*>(flip.data()),
                                s.per_image ? 2 : 0,
                                s.per_image ? 1 : 0,
                                s.wrap,
                                adjoint};
    strides(s, s.x_last, a.strides);
    jitter_flip(a, nullptr);
    expect_close(out, naive(s, x, shift, flip, adjoint), kStoreError<U>, adjoint ? "adjoint" : "result");
  }
}

template <typename T>
class JitterFlip : public ::testing::Test {};
TYPED_TEST_SUITE(JitterFlip, PixelTypes);

TYPED_TEST(JitterFlip, AllFormatsAndBorders) {
  // One pixel, planes that split into packs and ones that do not, rows that packs cross, several blocks a plane.
  const int64_t shapes[][4] = {{1, 1, 1, 1}, {3, 3, 8, 8}, {2, 3, 7, 9}, {2, 1, 28, 28}, {1, 5, 4, 6}, {1, 2, 50, 64}};
  for (const auto& [batch, channels, height, width] : shapes)
    for (const bool x_last : {false, true})
      for (const bool out_last : {false, true})
        for (const bool wrap : {false, true}) {
          std::vector<int64_t> shift;
          std::vector<char> flip;
          for (int64_t n = 0; n < batch; ++n) {
            shift.insert(shift.end(), {3 * n - 2, 4 - 5 * n});
            flip.push_back(n % 2 == 0);
          }
          check<TypeParam, float>({batch, channels, height, width, x_last, out_last, true, wrap}, shift, flip);
          check<TypeParam, BFloat16>({batch, channels, height, width, x_last, out_last, false, wrap}, shift, flip);
          check<float, TypeParam>({batch, channels, height, width, x_last, out_last, true, wrap}, shift, flip);
        }
}

TYPED_TEST(JitterFlip, ShiftsBeyondTheImage) {
  for (const bool wrap : {false, true})
    for (const int64_t far : {-1000, -7, 7, 8, 9, 1000})
      for (const char flip : {0, 1})
        check<TypeParam, TypeParam>({2, 3, 7, 8, false, true, false, wrap}, {far, -far}, {flip});
}

}  // namespace
}  // namespace exml::cuda
