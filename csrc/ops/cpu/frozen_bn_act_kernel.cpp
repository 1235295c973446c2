#include <numeric>

#include "math/statistics_distance.h"
#include "ops/backend.h"
#include "ops/cpu/channel_loop.h"
#include "ops/dispatch.h"
#include "ops/frozen_bn_act.h"

namespace exml {
namespace {

template <typename T>
struct BNActForward {
  const T *x, *residual;  // residual and mask may be null
  T* y;
  uint8_t* mask;
  Accumulator<T> negative_slope;
};

template <typename T>
struct BNActBackward {
  const T *grad, *x, *residual;  // residual, mask and grad_residual may be null
  const uint8_t* mask;
  T *grad_x, *grad_residual;
  Accumulator<T> negative_slope;
};

}  // namespace
}  // namespace exml

#define EXML_SIMD_SOURCE "ops/cpu/frozen_bn_act_simd.h"
#include "ops/cpu/for_each_capability.h"

namespace exml {
namespace {

template <typename T>
T* shifted(T* p, int64_t i) {
  return p ? p + i : nullptr;
}
template <typename T>
BNActForward<T> shifted(const BNActForward<T>& p, int64_t i) {
  return {p.x + i, shifted(p.residual, i), p.y + i, shifted(p.mask, i), p.negative_slope};
}
template <typename T>
BNActBackward<T> shifted(const BNActBackward<T>& p, int64_t i) {
  return {p.grad + i,         p.x + i,      shifted(p.residual, i),
          shifted(p.mask, i), p.grad_x + i, shifted(p.grad_residual, i),
          p.negative_slope};
}

// Rows of channels as the kernels see them: `fold` rows side by side are a whole number of vectors, so that no row has
// a tail. Where that would take too many lanes, the last vector of a row overlaps the one before it.
struct Lanes {
  int64_t channels, fold, period;

  Lanes(int64_t channels, int64_t vector) : channels(channels) {
    const int64_t multiple = std::lcm(channels, vector);
    fold = multiple <= 2048 || channels < vector ? multiple / channels : 1;
    period = fold * channels;
  }

  // One constant a channel, repeated for every row.
  template <typename A>
  std::vector<A> spread(const A* constants) const {
    std::vector<A> values(period);
    for (int64_t i = 0; i < period; ++i) values[i] = constants[i % channels];
    return values;
  }
};

// The last `count` < period values, copied to memory in which a whole row may be read and written.
template <typename T>
std::vector<T> padded(const T* from, int64_t count, int64_t period) {
  std::vector<T> values(from ? period : 0);
  if (from) std::copy_n(from, count, values.begin());
  return values;
}
template <typename T>
T* data_or_null(std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

// Moments of the lanes over the same number of rows.
class LaneMoments {
 public:
  explicit LaneMoments(int64_t lanes) : mean_(lanes), m2_(lanes) {}

  template <typename A>
  void add(int64_t rows, const std::vector<A>& center, const std::vector<A>& sums, const std::vector<A>& squares) {
    const double all = rows_ + rows, share = rows / all, weight = rows_ * share, per_row = 1.0 / rows;
    for (size_t i = 0; i < mean_.size(); ++i) {
      const double offset = sums[i] * per_row, m2 = squares[i] - sums[i] * offset;
      const double delta = center[i] + offset - mean_[i];
      // This comparison keeps a NaN. Before the first block, weight is 0 and share is 1.
      m2_[i] += (m2 < 0 ? 0 : m2) + delta * delta * weight;
      mean_[i] += delta * share;
    }
    rows_ = all;
  }

  // Adds the lanes of each channel to its moments.
  void fold(int64_t channels, Moments<double>* moments) const {
    if (rows_ == 0) return;
    for (size_t i = 0; i < mean_.size(); ++i) {
      Moments<double>& m = moments[i % channels];
      m = combine(m, {rows_, mean_[i], m2_[i]});
    }
  }

 private:
  double rows_ = 0;
  std::vector<double> mean_, m2_;
};

template <typename T, typename A = Accumulator<T>>
void forward_rows(Activation activation, const BNActForward<T>& p, int64_t rows, const Lanes& lanes,
                  const std::vector<A>& scale, const std::vector<A>& shift, Moments<double>* moments) {
  constexpr int64_t kRun = 1024;  // rows that are summed in A
  const int64_t period = lanes.period, whole = rows / lanes.fold;
  std::vector<A> center(period), sums(period), squares(period);
  LaneMoments total(period);
  const auto run = [&](const BNActForward<T>& at, int64_t count) {
    EXML_CPU_CALL(forward_rows, activation, at, count, period, scale.data(), shift.data(), center.data(), sums.data(),
                  squares.data());
  };
  for (int64_t start = 0; start < whole; start += kRun) {
    const int64_t count = std::min(kRun, whole - start);
    const auto block = shifted(p, start * period);
    for (int64_t i = 0; i < period; ++i) center[i] = widen(block.x[i]);
    std::fill(sums.begin(), sums.end(), A(0));
    std::fill(squares.begin(), squares.end(), A(0));
    run(block, count);
    total.add(count, center, sums, squares);
  }
  total.fold(lanes.channels, moments);
  const int64_t first = whole * period, rest = rows * lanes.channels - first;
  if (rest == 0) return;
  const auto at = shifted(p, first);
  auto x = padded(at.x, rest, period), residual = padded(at.residual, rest, period), y = x;
  std::vector<uint8_t> mask(at.mask ? period : 0);
  run({x.data(), data_or_null(residual), y.data(), data_or_null(mask), p.negative_slope}, 1);
  std::copy_n(y.begin(), rest, at.y);
  if (at.mask) std::copy_n(mask.begin(), rest, at.mask);
  for (int64_t i = 0; i < rest; ++i) {
    Moments<double>& m = moments[i % lanes.channels];
    m = combine(m, {1, widen(at.x[i]), 0});
  }
}

template <typename T, typename A = Accumulator<T>>
void backward_rows(Activation activation, const BNActBackward<T>& p, int64_t rows, const Lanes& lanes,
                   const std::vector<A>& scale, const std::vector<A>& shift, const PixelGradient<std::vector<A>>& g) {
  const int64_t period = lanes.period, whole = rows / lanes.fold;
  const auto run = [&](const BNActBackward<T>& at, int64_t count) {
    EXML_CPU_CALL(backward_rows, activation, at, count, period, scale.data(), shift.data(),
                  PixelGradient<const A*>{g.offset.data(), g.slope.data(), g.mean.data()});
  };
  run(p, whole);
  const int64_t first = whole * period, rest = rows * lanes.channels - first;
  if (rest == 0) return;
  const auto at = shifted(p, first);
  auto grad = padded(at.grad, rest, period), x = padded(at.x, rest, period),
       residual = padded(at.residual, rest, period), grad_x = x, d = at.grad_residual ? x : std::vector<T>();
  auto mask = padded(at.mask, rest, period);
  run({grad.data(), x.data(), data_or_null(residual), data_or_null(mask), grad_x.data(), data_or_null(d),
       p.negative_slope},
      1);
  std::copy_n(grad_x.begin(), rest, at.grad_x);
  if (at.grad_residual) std::copy_n(d.begin(), rest, at.grad_residual);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const FrozenBNAct& op) {
  const Tensor& x = op.x;
  const ChannelLayout& layout = op.layout;
  const int64_t channels = layout.channels;
  Tensor y = new_like(x), mean = empty({channels}, op.scale.scalar_type(), x), var = new_like(mean),
         mask = new_mask(op);
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    const BNActForward<T> p{pixels, values_or_null<T>(op.residual), static_cast<T*>(y.mutable_data_ptr()),
                            op.with_mask ? mask.mutable_data_ptr<uint8_t>() : nullptr,
                            static_cast<A>(op.negative_slope)};
    const A *scale = op.scale.const_data_ptr<A>(), *shift = op.shift.const_data_ptr<A>();
    const Lanes lanes(channels, cpu::kMostLanes<A>);
    const auto scales = lanes.spread(scale), shifts = lanes.spread(shift);
    const auto moments = channel_moments(
        layout,
        [&](int64_t offset, int64_t rows, Moments<double>* partial) {
          forward_rows<T>(op.activation, shifted(p, offset), rows, lanes, scales, shifts, partial);
        },
        [&](int64_t offset, int64_t c) {
          return EXML_CPU_CALL(forward_run, op.activation, shifted(p, offset), layout.plane, scale[c], shift[c]);
        },
        lanes.fold);
    for (int64_t c = 0; c < channels; ++c) {
      mean.mutable_data_ptr<A>()[c] = static_cast<A>(moments[c].mean);
      var.mutable_data_ptr<A>()[c] = static_cast<A>(moments[c].variance());
    }
  });
  return {y, mean, var, mask};
}

std::vector<Tensor> backward(const FrozenBNActBackward& arguments) {
  const auto& [op, grad_y, grad_mean, grad_var, mean, mask, with_residual] = arguments;
  const Tensor& x = op.x;
  const ChannelLayout& layout = op.layout;
  const int64_t channels = layout.channels;
  std::vector<Tensor> results{new_like(x)};
  if (with_residual) results.push_back(new_like(x));
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    using A = Accumulator<T>;
    const A *shift = op.shift.const_data_ptr<A>(), *means = mean.const_data_ptr<A>();
    const A *mean_pulls = values_or_null<A>(grad_mean), *var_pulls = values_or_null<A>(grad_var);
    // Without a gradient of y, x times 0 takes its place. This is NaN only where x is not finite, and then the mean is
    // not finite either.
    const bool flows = grad_y.has_value();
    const Activation activation = flows ? op.activation : Activation::none;
    std::vector<A> scale(channels), offset(channels), slope(channels);
    for (int64_t c = 0; c < channels; ++c) {
      scale[c] = flows ? op.scale.const_data_ptr<A>()[c] : A(0);
      offset[c] = mean_pulls ? mean_pulls[c] / layout.count() : A(0);
      slope[c] = var_pulls ? 2 * var_pulls[c] / layout.count() : A(0);
    }
    const BNActBackward<T> p{flows ? values_or_null<T>(grad_y) : pixels,
                             pixels,
                             values_or_null<T>(op.residual),
                             values_or_null<uint8_t>(mask),
                             static_cast<T*>(results[0].mutable_data_ptr()),
                             with_residual ? static_cast<T*>(results[1].mutable_data_ptr()) : nullptr,
                             static_cast<A>(op.negative_slope)};
    const Lanes lanes(channels, cpu::kMostLanes<A>);
    const auto scales = lanes.spread(scale.data()), shifts = lanes.spread(shift);
    const PixelGradient<std::vector<A>> spread{lanes.spread(offset.data()), lanes.spread(slope.data()),
                                               lanes.spread(means)};
    for_each_channel(
        layout,
        [&](int64_t begin, int64_t rows) {
          backward_rows<T>(activation, shifted(p, begin), rows, lanes, scales, shifts, spread);
        },
        [&](int64_t begin, int64_t c) {
          EXML_CPU_CALL(backward_run, activation, shifted(p, begin), layout.plane, scale[c], shift[c],
                        PixelGradient<A>{offset[c], slope[c], means[c]});
        },
        lanes.fold);
  });
  return results;
}

STABLE_TORCH_LIBRARY_IMPL(exml, CPU, m) {
  m.impl("_frozen_bn_act_forward", checked<&frozen_bn_act_arguments, &forward>);
  m.impl("_frozen_bn_act_backward", checked<&frozen_bn_act_backward_arguments, &backward>);
}

}  // namespace
}  // namespace exml
