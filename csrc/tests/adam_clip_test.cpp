#include "ops/cuda/adam_clip_kernel.cu"
#include "tests/arrays.h"

namespace exml::cuda {
namespace {

using namespace exml::tests;

struct Case {
  int64_t batch, channels, plane;
  bool channels_last, grad_transposed = false, bounded = false, some = false;
  int64_t shift = 0;  // of all arrays from their alignment
};

// x and its moments before and after, and the gradient.
template <typename T, typename G>
struct State {
  std::vector<T> x, m, v;
  std::vector<G> grad;

  explicit State(int64_t size)
      : x(normal<T>(size, 0, 1, 1)),
        m(normal<T>(size, 0, 0.1, 2)),
        v(normal<T>(size, 0, 0.1, 3)),
        grad(normal<G>(size, 0, 1, 4)) {
    for (T& value : v) value *= value;
  }
};

int64_t place(const Case& s, bool channels_last, int64_t n, int64_t c, int64_t p) {
  return channels_last ? (n * s.plane + p) * s.channels + c : (n * s.channels + c) * s.plane + p;
}

template <typename T, typename G>
void check(const Case& s) {
  const int64_t size = s.batch * s.channels * s.plane;
  SCOPED_TRACE(std::to_string(s.batch) + "x" + std::to_string(s.channels) + "x" + std::to_string(s.plane) +
               (s.channels_last ? " channels_last" : "") + (s.grad_transposed ? " grad_transposed" : ""));
  State<T, G> state(size + s.shift);
  const State<T, G> before = state;
  const int64_t step = 3;
  const float real_step = 3;
  const T lr = T(0.05);
  const auto low = normal<T>(s.channels, -0.7, 0.1, 5), high = normal<T>(s.channels, 0.7, 0.1, 6);
  std::vector<char> active(s.batch);
  for (int64_t n = 0; n < s.batch; ++n) active[n] = n % 2 == 0;
  const AdamRates rates = adam_rates(0.9, 0.99, 1e-8);
  adam_clip(AdamClipArguments<T, G>{state.x.data() + s.shift, state.m.data() + s.shift, state.v.data() + s.shift,
                                    state.grad.data() + s.shift, s.batch, s.channels, s.plane, s.channels_last,
                                    s.grad_transposed, s.bounded ? &step : nullptr, s.bounded ? nullptr : &real_step,
                                    &lr, s.bounded ? low.data() : nullptr, s.bounded ? high.data() : nullptr,
                                    s.some ? reinterpret_cast<const bool*>(active.data()) : nullptr, rates},
            nullptr);
  std::vector<double> x(before.x.begin(), before.x.end()), m(before.m.begin(), before.m.end()),
      v(before.v.begin(), before.v.end());
  const double fresh1 = 1 - std::pow(0.9, 3), fresh2 = 1 - std::pow(0.99, 3);
  for (int64_t n = 0; n < s.batch; ++n) {
    if (s.some && n % 2 == 1) continue;
    for (int64_t c = 0; c < s.channels; ++c)
      for (int64_t p = 0; p < s.plane; ++p) {
        const int64_t i = s.shift + place(s, s.channels_last, n, c, p);
        const double g = widen(before.grad[s.shift + place(s, s.channels_last != s.grad_transposed, n, c, p)]);
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.99 * v[i] + 0.01 * g * g;
        x[i] -= lr * (m[i] / fresh1) / (std::sqrt(v[i] / fresh2) + 1e-8);
        if (s.bounded) x[i] = std::fmin(std::fmax(x[i], low[c]), high[c]);
      }
  }
  expect_close(state.x, x, kSumError<T>, "x");
  expect_close(state.m, m, kSumError<T>, "exp_avg");
  expect_close(state.v, v, kSumError<T>, "exp_avg_sq");
  for (int64_t i = 0; s.some && i < size; ++i)
    if (i / (s.channels * s.plane) % 2 == 1) {
      EXPECT_EQ(state.x[s.shift + i], before.x[s.shift + i]);
    }
}

template <typename G>
class AdamClip : public ::testing::Test {};
TYPED_TEST_SUITE(AdamClip, PixelTypes);

TYPED_TEST(AdamClip, AllShapesAndFormats) {
  using T = Accumulator<TypeParam>;
  // One value, planes that split into packs and ones that do not, one and several blocks a plane, one pixel a plane.
  const int64_t shapes[][3] = {{1, 1, 1}, {3, 3, 49}, {2, 3, 1024}, {5, 1, 784}, {1, 2, 9000}, {4, 37, 1}, {2, 6, 10}};
  for (const auto& [batch, channels, plane] : shapes)
    for (const bool channels_last : {false, true})
      for (const bool grad_transposed : {false, true})
        for (const bool bounded : {false, true})
          check<T, TypeParam>({batch, channels, plane, channels_last, grad_transposed, bounded, bounded});
}

TYPED_TEST(AdamClip, MisalignedPointers) {
  using T = Accumulator<TypeParam>;
  for (const bool channels_last : {false, true}) check<T, TypeParam>({2, 4, 64, channels_last, false, true, false, 1});
}

TYPED_TEST(AdamClip, ClipLetsNanThrough) {
  using T = Accumulator<TypeParam>;
  for (const bool channels_last : {false, true}) {
    State<T, TypeParam> state(2 * 3 * 16);
    state.grad[37] = stored<TypeParam>(NAN);
    const int64_t step = 1;
    const T lr = T(0.1), low[3] = {-1, -1, -1}, high[3] = {1, 1, 1};
    adam_clip(AdamClipArguments<T, TypeParam>{state.x.data(), state.m.data(), state.v.data(), state.grad.data(), 2, 3,
                                              16, channels_last, false, &step, nullptr, &lr, low, high, nullptr,
                                              adam_rates(0.9, 0.999, 1e-8)},
              nullptr);
    for (size_t i = 0; i < state.x.size(); ++i) EXPECT_EQ(std::isnan(state.x[i]), i == 37) << i;
  }
}

}  // namespace
}  // namespace exml::cuda
