#include "ops/cuda/image_prior_kernel.cu"
#include "tests/kernel_checks.h"

namespace exml {
namespace {

using cuda::Images;

Images images_of(int64_t count, int64_t channels, int64_t height, int64_t width, bool channels_last) {
  const int64_t size = channels * height * width;
  if (channels_last) return {count, channels, height, width, size, 1, width * channels, channels};
  return {count, channels, height, width, size, height * width, width, 1};
}

int64_t at(const Images& m, int64_t n, int64_t c, int64_t y, int64_t x) {
  return n * m.image_stride + c * m.channel_stride + y * m.row_stride + x * m.pixel_stride;
}

// Losses by definition, in double; `group` < 0: of the whole batch.
std::vector<double> losses_by_definition(const std::vector<double>& x, const Images& m, int64_t group,
                                         int kernel_size) {
  const auto window = gaussian_window<double>(kernel_size, 1.0);
  double sums[kPriorSums] = {};
  int64_t images = 0;
  for (int64_t n = 0; n < m.count; ++n) {
    if (group >= 0 && n != group) continue;
    ++images;
    for (int64_t c = 0; c < m.channels; ++c)
      for (int64_t i = 0; i < m.height; ++i)
        for (int64_t j = 0; j < m.width; ++j) {
          const auto pixel = [&](int64_t y, int64_t z) { return x[at(m, n, c, y, z)]; };
          const auto add = [&](int direction, double d) {
            sums[kAbs + direction] += std::abs(d);
            sums[kSquare + direction] += d * d;
          };
          const bool right = j + 1 < m.width, below = i + 1 < m.height;
          if (right) add(0, pixel(i, j) - pixel(i, j + 1));
          if (below) add(1, pixel(i, j) - pixel(i + 1, j));
          if (right && below) add(2, pixel(i + 1, j) - pixel(i, j + 1));
          if (right && below) add(3, pixel(i, j) - pixel(i + 1, j + 1));
          double residual = pixel(i, j);
          for (int s = -window.radius; s <= window.radius; ++s)
            for (int t = -window.radius; t <= window.radius; ++t)
              residual -= window.taps[s + window.radius] * window.taps[t + window.radius] *
                          pixel(reflect(i + s, m.height), reflect(j + t, m.width));
          sums[kBlur] += residual * residual;
          sums[kNorm] += pixel(i, j) * pixel(i, j);
        }
  }
  std::vector<double> losses(kPriorLosses);
  prior_losses(sums, double(images * m.channels), m.height, m.width, losses.data());
  return losses;
}

template <typename T>
class ImagePriorKernel : public ::testing::Test {};
TYPED_TEST_SUITE(ImagePriorKernel, exml::testing::PixelTypes);

TYPED_TEST(ImagePriorKernel, MatchesTheDefinition) {
  using T = TypeParam;
  using A = Accumulator<T>;
  constexpr double exact = std::is_same_v<T, double> ? 1e-11 : 2e-5;
  constexpr double near = std::is_same_v<T, BFloat16> ? 3e-2 : 1e-4;
  const struct {
    int64_t count, channels, height, width;
    int kernel_size;
  } cases[] = {{2, 1, 5, 4, 3},    {1, 3, 17, 16, 3}, {2, 2, 20, 33, 7},
               {1, 1, 16, 18, 15}, {1, 1, 2, 2, 1},   {1, 2, 9, 8, 15}};
  for (const auto& k : cases)
    for (const bool channels_last : {false, true})
      for (const bool per_image : {false, true}) {
        const Images m = images_of(k.count, k.channels, k.height, k.width, channels_last);
        const auto pixels = exml::testing::random_pixels<T>(k.count * k.channels * k.height * k.width, 5);
        std::vector<double> x;
        for (const T p : pixels) x.push_back(widen(p));
        const int64_t groups = per_image ? k.count : 1;
        const auto window = gaussian_window<A>(k.kernel_size, 1.0);
        std::vector<double> partial(cuda::image_prior_blocks(m) * kPriorSums, NAN), sums(groups * kPriorSums, NAN);
        std::vector<A> losses(kPriorLosses * groups, A(NAN)), grads;
        cuda::image_prior_forward(pixels.data(), m, groups, window, partial.data(), losses.data(), sums.data(),
                                  nullptr);
        for (int64_t g = 0; g < groups; ++g) {
          const auto expected = losses_by_definition(x, m, per_image ? g : -1, k.kernel_size);
          for (int i = 0; i < kPriorLosses; ++i)
            EXPECT_NEAR(losses[i * groups + g], expected[i], exact * (1 + expected[i]));
        }
        for (int64_t i = 0; i < kPriorLosses * groups; ++i) grads.push_back(A(0.5 + 0.25 * double(i)));
        std::vector<T> out(pixels.size());
        for (T& value : out) narrow(A(NAN), value);
        cuda::image_prior_backward(grads.data(), pixels.data(), sums.data(), m, groups, window, out.data(), nullptr);
        for (size_t i = 0; i < x.size(); i += 1 + x.size() / 23) {  // numeric derivatives of the weighted losses
          const auto objective = [&](double delta) {
            auto moved = x;
            moved[i] += delta;
            double total = 0;
            for (int64_t g = 0; g < groups; ++g) {
              const auto value = losses_by_definition(moved, m, per_image ? g : -1, k.kernel_size);
              for (int l = 0; l < kPriorLosses; ++l) total += double(grads[l * groups + g]) * value[l];
            }
            return total;
          };
          const double numeric = (objective(1e-6) - objective(-1e-6)) / 2e-6;
          EXPECT_NEAR(widen(out[i]), numeric, near);
        }
      }
}

TEST(ImagePriorKernel, NaNStaysInItsImage) {
  const Images m = images_of(2, 1, 20, 20, false);
  auto x = exml::testing::random_pixels<float>(800, 2);
  x[37] = NAN;
  const auto window = gaussian_window<float>(3, 1.0);
  std::vector<double> partial(cuda::image_prior_blocks(m) * kPriorSums), sums(2 * kPriorSums);
  std::vector<float> losses(8);
  cuda::image_prior_forward(x.data(), m, 2, window, partial.data(), losses.data(), sums.data(), nullptr);
  for (int i = 0; i < kPriorLosses; ++i) {
    EXPECT_TRUE(std::isnan(losses[2 * i]));
    EXPECT_TRUE(std::isfinite(losses[2 * i + 1]));
  }
}

}  // namespace
}  // namespace exml
