#include "ops/cuda/frozen_bn_act_kernel.cu"
#include "tests/arrays.h"

namespace exml::cuda {
namespace {

using namespace exml::tests;

constexpr int kMultiprocessors = 3;
constexpr double kSlope = 0.1;
constexpr Activation kActivations[] = {
#define EXML_NAME(name) Activation::name,
    EXML_FOR_EACH_ACTIVATION(EXML_NAME)
#undef EXML_NAME
};

int64_t place(const ChannelShape& s, int64_t n, int64_t c, int64_t p) {
  return s.channels_last ? (n * s.plane + p) * s.channels + c : (n * s.channels + c) * s.plane + p;
}

struct Case {
  Activation activation = Activation::relu;
  bool residual = true;
  bool grad_y = true, grad_mean = true, grad_var = true, grad_residual = true;
  int64_t offset = 0;  // of all arrays, in values: misaligned unless it is a multiple of a pack
};

// Runs forward and backward and compares all outputs with the formulas in double.
template <typename T>
void check(const ChannelShape& s, const Case& how, double mean_of_x = 0.3) {
  using A = Accumulator<T>;
  SCOPED_TRACE(std::to_string(s.batch) + "x" + std::to_string(s.channels) + "x" + std::to_string(s.plane) +
               (s.channels_last ? " channels_last" : "") + " activation " + std::to_string(int(how.activation)));
  const int64_t size = s.channels * s.count();
  const auto array = [&](double mean, uint64_t seed) { return normal<T>(size + how.offset, mean, 1.7, seed); };
  const auto x = array(mean_of_x, 1), residual = array(0, 2), grad = array(0, 3);
  const auto scale = normal<A>(s.channels, 1, 0.3, 4), shift = normal<A>(s.channels, 0, 1, 5);
  const auto grad_mean = normal<A>(s.channels, 0, 30, 6), grad_var = normal<A>(s.channels, 0, 30, 7);
  auto y = unwritten<T>(size + how.offset), grad_x = y, grad_residual = y;
  auto mean = unwritten<A>(s.channels), var = mean;
  const auto at = [&](auto& values) { return values.data() + how.offset; };
  const FrozenNorm<T> norm{scale.data(), shift.data(), how.residual ? at(residual) : nullptr, how.activation,
                           A(kSlope)};
  std::vector<double> workspace(
      frozen_bn_act_workspace<T>(at(x), norm, s, at(y), kMultiprocessors) / sizeof(double) + 1, NAN);
  const bool masked = how.activation == Activation::relu;
  std::vector<uint8_t> mask(size, 7);
  frozen_bn_act_forward<T>(at(x), norm, s, kMultiprocessors, workspace.data(), at(y), mean.data(), var.data(),
                           masked ? mask.data() : nullptr, nullptr);
  FrozenNormGrads<T> grads{how.grad_y ? at(grad) : nullptr, how.grad_mean ? grad_mean.data() : nullptr,
                           how.grad_var ? grad_var.data() : nullptr, mean.data(), nullptr};
  frozen_bn_act_backward<T>(grads, at(x), norm, s, kMultiprocessors, at(grad_x),
                            how.grad_residual ? at(grad_residual) : nullptr, nullptr);
  if (masked) {  // in place of the residual, with the same result
    auto from_mask = unwritten<T>(size + how.offset), residual_from_mask = from_mask;
    grads.mask = mask.data();
    const FrozenNorm<T> alone{scale.data(), shift.data(), nullptr, how.activation, A(kSlope)};
    frozen_bn_act_backward<T>(grads, at(x), alone, s, kMultiprocessors, at(from_mask),
                              how.grad_residual ? at(residual_from_mask) : nullptr, nullptr);
    for (int64_t i = 0; i < size; ++i) {
      ASSERT_EQ(widen(at(from_mask)[i]), widen(at(grad_x)[i]));
      if (how.grad_residual) ASSERT_EQ(widen(at(residual_from_mask)[i]), widen(at(grad_residual)[i]));
    }
  }

  std::vector<double> ys(size), means(s.channels), vars(s.channels), grads_x(size), ds(size);
  for (int64_t c = 0; c < s.channels; ++c) {
    const auto over_channel = [&](auto f) {
      for (int64_t n = 0; n < s.batch; ++n)
        for (int64_t p = 0; p < s.plane; ++p) f(place(s, n, c, p));
    };
    const auto value = [&](const std::vector<T>& values, int64_t i) { return double(widen(values[i + how.offset])); };
    over_channel([&](int64_t i) { means[c] += value(x, i) / s.count(); });
    over_channel([&](int64_t i) { vars[c] += std::pow(value(x, i) - means[c], 2) / s.count(); });
    over_channel([&](int64_t i) {
      double z = value(x, i) * scale[c] + shift[c] + (how.residual ? value(residual, i) : 0);
      double d = how.grad_y ? value(grad, i) : 0;
      pull_back<1>(how.activation, &z, &d, kSlope);
      activate<1>(how.activation, &z, kSlope);
      ys[i] = z;
      ds[i] = d;
      grads_x[i] = scale[c] * d + (how.grad_mean ? grad_mean[c] / s.count() : 0) +
                   (how.grad_var ? 2 * grad_var[c] / s.count() * (value(x, i) - means[c]) : 0);
    });
  }
  const auto values = [&](const std::vector<T>& v) { return std::vector<T>(v.begin() + how.offset, v.end()); };
  expect_close(values(y), ys, kStoreError<T>, "y");
  expect_close(mean, means, kSumError<T>, "mean");
  expect_close(var, vars, 3 * kSumError<T>, "var");
  expect_close(values(grad_x), grads_x, kStoreError<T>, "grad_x");
  if (how.grad_residual) expect_close(values(grad_residual), ds, kStoreError<T>, "grad_residual");
}

template <typename T>
class FrozenBNAct : public ::testing::Test {};
TYPED_TEST_SUITE(FrozenBNAct, PixelTypes);

TYPED_TEST(FrozenBNAct, AllShapes) {
  // As for bn_match: below a warp, odd, in packs and not, more channels than threads, one pixel, several splits.
  const int64_t shapes[][3] = {{1, 1, 2},    {2, 3, 1},    {5, 7, 9},   {3, 8, 16},    {2, 16, 49},
                               {4, 2, 1200}, {2, 1030, 4}, {65, 48, 4}, {7, 1100, 1},  {3, 72, 40},
                               {2, 1, 5000}, {300, 8, 8},  {1, 36, 64}, {2, 64, 2500}, {1, 144, 7}};
  bool residual = false;
  for (const auto& [batch, channels, plane] : shapes)
    for (const bool channels_last : {false, true}) {
      residual = !residual;
      check<TypeParam>({batch, channels, plane, channels_last}, {.residual = residual, .grad_residual = residual});
    }
}

TYPED_TEST(FrozenBNAct, AllActivations) {
  for (const auto activation : kActivations)
    for (const bool channels_last : {false, true}) check<TypeParam>({4, 16, 36, channels_last}, {activation});
}

TYPED_TEST(FrozenBNAct, GradientsThatAreMissing) {
  for (const bool channels_last : {false, true})
    for (int missing = 0; missing < 8; ++missing)
      check<TypeParam>({2, 8, 24, channels_last},
                       {.grad_y = (missing & 1) == 0, .grad_mean = (missing & 2) == 0, .grad_var = (missing & 4) == 0});
}

TYPED_TEST(FrozenBNAct, MisalignedPointers) {
  for (const bool channels_last : {false, true}) check<TypeParam>({3, 16, 16, channels_last}, {.offset = 1});
}

TYPED_TEST(FrozenBNAct, NanStaysInItsChannel) {
  using A = Accumulator<TypeParam>;
  for (const bool channels_last : {false, true}) {
    const ChannelShape s{3, 5, 50, channels_last};
    auto x = normal<TypeParam>(s.channels * s.count(), 0, 1, 5), y = x;
    x[place(s, 1, 3, 17)] = stored<TypeParam>(NAN);
    const std::vector<A> ones(s.channels, A(1));
    std::vector<A> mean(s.channels), var(s.channels);
    const FrozenNorm<TypeParam> norm{ones.data(), ones.data(), nullptr, Activation::relu, A(0)};
    std::vector<double> workspace(
        frozen_bn_act_workspace<TypeParam>(x.data(), norm, s, y.data(), kMultiprocessors) / sizeof(double) + 1, NAN);
    std::vector<uint8_t> mask(x.size());
    frozen_bn_act_forward<TypeParam>(x.data(), norm, s, kMultiprocessors, workspace.data(), y.data(), mean.data(),
                                     var.data(), mask.data(), nullptr);
    EXPECT_EQ(mask[place(s, 1, 3, 17)], 1);  // the derivative of PyTorch's relu at NaN is 1
    for (int64_t c = 0; c < s.channels; ++c) {
      EXPECT_EQ(std::isnan(mean[c]), c == 3);
      EXPECT_EQ(std::isnan(var[c]), c == 3);
    }
    int64_t nans = 0;
    for (const auto& v : y) nans += std::isnan(widen(v));
    EXPECT_EQ(nans, 1);
    EXPECT_TRUE(std::isnan(widen(y[place(s, 1, 3, 17)])));
  }
}

}  // namespace
}  // namespace exml::cuda
