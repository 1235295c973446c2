#include "ops/cuda/image_prior_kernel.cu"
#include "tests/arrays.h"

namespace exml::cuda {
namespace {

using namespace exml::tests;

int64_t place(const Images& s, int64_t n, int64_t c, int64_t i, int64_t j) {
  return s.channels_last ? ((n * s.height + i) * s.width + j) * s.channels + c
                         : ((n * s.channels + c) * s.height + i) * s.width + j;
}

struct Naive {
  std::vector<double> sums, losses, grad;
};

// Losses and gradient by the definitions, in double: the blur as a matrix, applied and transposed entry by entry.
template <typename T>
Naive naive(const T* x, const Images& s, int kernel_size, double sigma, const std::vector<double>& grads) {
  const int64_t groups = s.groups(), height = s.height, width = s.width, radius = kernel_size / 2;
  Naive result{std::vector<double>(groups * kPriorSums), std::vector<double>(kPriorLosses * groups),
               std::vector<double>(s.images * s.channels * height * width)};
  std::vector<double> taps;
  double total = 0;
  for (int64_t t = -radius; t <= radius; ++t) taps.push_back(std::exp(-0.5 * t * t / (sigma * sigma)));
  for (const double tap : taps) total += tap;
  const auto each_plane = [&](auto f) {
    for (int64_t n = 0; n < s.images; ++n)
      for (int64_t c = 0; c < s.channels; ++c) {
        const auto pixel = [&](int64_t i, int64_t j) { return double(widen(x[place(s, n, c, i, j)])); };
        const auto border = [](int64_t i, int64_t size) { return i < 0 ? -i : i >= size ? 2 * size - 2 - i : i; };
        // Visits (source pixel, weight) of the blurred pixel (i, j).
        const auto blur = [&](int64_t i, int64_t j, auto visit) {
          for (int64_t a = -radius; a <= radius; ++a)
            for (int64_t b = -radius; b <= radius; ++b)
              visit(border(i + a, height), border(j + b, width), taps[a + radius] * taps[b + radius] / total / total);
        };
        const auto residual = [&](int64_t i, int64_t j) {
          double value = pixel(i, j);
          blur(i, j, [&](int64_t y, int64_t z, double weight) { value -= weight * pixel(y, z); });
          return value;
        };
        f(n, c, pixel, residual, blur);
      }
  };
  // The pairs of pixels behind the four differences, as offsets from (i, j).
  const int64_t from[4][2] = {{0, 0}, {0, 0}, {1, 0}, {0, 0}}, to[4][2] = {{0, 1}, {1, 0}, {0, 1}, {1, 1}};
  const auto each_pair = [&](auto f) {
    for (int d = 0; d < 4; ++d)
      for (int64_t i = 0; i < height - (d > 0); ++i)
        for (int64_t j = 0; j < width - (d != 1); ++j) f(d, i + from[d][0], j + from[d][1], i + to[d][0], j + to[d][1]);
  };
  each_plane([&](int64_t n, int64_t, auto pixel, auto residual, auto) {
    double* sums = result.sums.data() + (s.per_image ? n : 0) * kPriorSums;
    each_pair([&](int d, int64_t i, int64_t j, int64_t y, int64_t z) {
      const double difference = pixel(i, j) - pixel(y, z);
      sums[kAbs + d] += std::fabs(difference);
      sums[kSquare + d] += difference * difference;
    });
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; ++j) {
        sums[kBlur] += std::pow(residual(i, j), 2);
        sums[kNorm] += std::pow(pixel(i, j), 2);
      }
  });
  const double planes = s.planes_per_group();
  const auto pairs = [&](int d) { return planes * double(height - (d > 0)) * double(width - (d != 1)); };
  for (int64_t g = 0; g < groups; ++g) {
    const double* sums = result.sums.data() + g * kPriorSums;
    for (int d = 0; d < 4; ++d) {
      result.losses[kTvL1 * groups + g] += sums[kAbs + d] / pairs(d);
      result.losses[kTvL2 * groups + g] += std::sqrt(sums[kSquare + d]);
    }
    result.losses[kBlurL2 * groups + g] = std::sqrt(sums[kBlur]);
    result.losses[kPixelL2 * groups + g] = std::sqrt(sums[kNorm]);
  }
  each_plane([&](int64_t n, int64_t c, auto pixel, auto residual, auto blur) {
    const int64_t g = s.per_image ? n : 0;
    const double* sums = result.sums.data() + g * kPriorSums;
    const auto pull = [&](int loss, double sum) { return sum == 0 ? 0 : grads[loss * groups + g] / std::sqrt(sum); };
    const auto add = [&](int64_t i, int64_t j, double value) { result.grad[place(s, n, c, i, j)] += value; };
    each_pair([&](int d, int64_t i, int64_t j, int64_t y, int64_t z) {
      const double difference = pixel(i, j) - pixel(y, z);
      const double sign = std::isnan(difference) ? NAN : (difference > 0) - (difference < 0);
      const double value = grads[kTvL1 * groups + g] / pairs(d) * sign + pull(kTvL2, sums[kSquare + d]) * difference;
      add(i, j, value);
      add(y, z, -value);
    });
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; ++j) {
        const double r = pull(kBlurL2, sums[kBlur]) * residual(i, j);
        add(i, j, r + pull(kPixelL2, sums[kNorm]) * pixel(i, j));
        blur(i, j, [&](int64_t y, int64_t z, double weight) { add(y, z, -weight * r); });
      }
  });
  return result;
}

template <typename T>
struct Result {
  std::vector<double> sums;
  std::vector<Accumulator<T>> losses;
  std::vector<T> grad;
};

template <typename T>
Result<T> run(const std::vector<T>& x, const Images& s, int kernel_size, double sigma,
              const std::vector<double>& grads) {
  using A = Accumulator<T>;
  const int64_t groups = s.groups();
  const std::vector<A> pulls(grads.begin(), grads.end());
  Result<T> result{unwritten<double>(groups * kPriorSums), unwritten<A>(kPriorLosses * groups), unwritten<T>(x.size())};
  const auto window = gaussian_window<A>(kernel_size, sigma);
  std::vector<double> forward(image_prior_forward_workspace<T>(s) / sizeof(double) + 1, NAN);
  image_prior_forward(x.data(), s, window, forward.data(), result.losses.data(), result.sums.data(), nullptr);
  std::vector<double> backward(image_prior_backward_workspace<T>(s) / sizeof(double) + 1, NAN);
  image_prior_backward(pulls.data(), x.data(), result.sums.data(), s, window, backward.data(), result.grad.data(),
                       nullptr);
  return result;
}

std::vector<double> some_grads(const Images& s) {
  std::vector<double> grads;
  for (int64_t i = 0; i < kPriorLosses * s.groups(); ++i) grads.push_back(0.5 + 0.25 * double(i % 7));
  return grads;
}

template <typename T>
void check(const std::vector<T>& x, const Images& s, int kernel_size, double sigma) {
  SCOPED_TRACE(std::to_string(s.images) + "x" + std::to_string(s.channels) + "x" + std::to_string(s.height) + "x" +
               std::to_string(s.width) + (s.channels_last ? " channels_last" : "") + (s.per_image ? " per image" : "") +
               " kernel " + std::to_string(kernel_size));
  const auto grads = some_grads(s);
  const auto got = run(x, s, kernel_size, sigma, grads);
  const auto wanted = naive(x.data(), s, kernel_size, sigma, grads);
  expect_close(got.sums, wanted.sums, kSumError<T>, "sums");
  expect_close(got.losses, wanted.losses, kSumError<T>, "losses");
  expect_close(got.grad, wanted.grad, kStoreError<T>, "grad");
}

template <typename T>
class ImagePrior : public ::testing::Test {};
TYPED_TEST_SUITE(ImagePrior, PixelTypes);

TYPED_TEST(ImagePrior, AllShapesAndWindows) {
  struct Case {
    int64_t images, channels, height, width;
    int kernel_size;
    double sigma;
  };
  // Less than a tile, several tiles, sizes at which the reflection spans the whole image, every instantiated radius.
  const Case cases[] = {{1, 1, 2, 2, 1, 1.0},   {2, 3, 2, 5, 3, 1.0},    {3, 1, 28, 28, 3, 1.0},
                        {2, 3, 33, 17, 3, 0.7}, {1, 2, 3, 70, 5, 1.1},   {2, 1, 35, 40, 7, 1.5},
                        {1, 1, 5, 5, 9, 2.0},   {1, 3, 8, 34, 15, 3.0},  {1, 1, 65, 9, 11, 2.5},
                        {4, 1, 4, 4, 7, 1.0},   {1, 1, 32, 32, 13, 2.0}, {1, 2, 64, 32, 3, 1.0}};
  int i = 0;
  for (const auto& c : cases)
    for (const bool channels_last : {false, true}) {
      const bool per_image = ++i % 2 == 0;
      const auto x = normal<TypeParam>(c.images * c.channels * c.height * c.width, 0.1, 1, i);
      check(x, {c.images, c.channels, c.height, c.width, channels_last, per_image}, c.kernel_size, c.sigma);
      if (c.images > 1)
        check(x, {c.images, c.channels, c.height, c.width, channels_last, !per_image}, c.kernel_size, c.sigma);
    }
}

TYPED_TEST(ImagePrior, ZeroImageHasNoGradient) {
  const Images s{2, 1, 6, 6, false, false};
  const auto got = run(std::vector<TypeParam>(72, stored<TypeParam>(0)), s, 3, 1.0, some_grads(s));
  for (const auto loss : got.losses) EXPECT_EQ(loss, 0);
  for (const auto& g : got.grad) EXPECT_EQ(widen(g), 0);
}

TYPED_TEST(ImagePrior, NanReachesItsImageAlone) {
  const Images s{2, 2, 40, 20, false, true};
  auto x = normal<TypeParam>(2 * 2 * 800, 0, 1, 9);
  x[place(s, 1, 0, 35, 3)] = stored<TypeParam>(NAN);
  const auto got = run(x, s, 3, 1.0, some_grads(s));
  for (int i = 0; i < kPriorLosses; ++i) {
    EXPECT_FALSE(std::isnan(got.losses[i * 2]));
    EXPECT_TRUE(std::isnan(got.losses[i * 2 + 1]));
  }
  for (int64_t i = 0; i < 2 * 1600; ++i) EXPECT_EQ(std::isnan(widen(got.grad[i])), i >= 1600) << i;
}

TYPED_TEST(ImagePrior, SameBitsWhateverTheOrderOfThreads) {
  const Images s{5, 3, 40, 40, true, false};
  const auto x = normal<TypeParam>(5 * 3 * 1600, 0, 1, 10);
  const auto first = run(x, s, 3, 1.0, some_grads(s));
  emulator::order_seed = 77;
  const auto second = run(x, s, 3, 1.0, some_grads(s));
  emulator::order_seed = 1;
  EXPECT_EQ(first.sums, second.sums);
  EXPECT_EQ(first.losses, second.losses);
}

}  // namespace
}  // namespace exml::cuda
