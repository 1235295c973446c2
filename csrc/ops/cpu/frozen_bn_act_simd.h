// Inner loops of frozen_bn_act, compiled once for each instruction set by for_each_capability.h.
namespace exml::cpu::EXML_CAPABILITY {

#include "math/activation_formulas.h"

// Writes vector i of y = act(scale x + shift (+ residual)), and of the mask.
template <Activation activation, typename T, typename A = Accumulator<T>>
EXML_INLINE void put_forward(const BNActForward<T>& p, int64_t i, Vector<A> x, Vector<A> scale, Vector<A> shift) {
  Vector<A> z = x * scale + shift;
  if (p.residual) z += load(p.residual + i);
  if (activation == Activation::relu && p.mask) store_mask<A>(p.mask + i, ~(z <= Vector<A>{}));
  store(p.y + i, activate<activation>(z, p.negative_slope));
}

// Vector i of d = act'(scale x + shift (+ residual)) g.
template <Activation activation, typename T, typename A = Accumulator<T>>
EXML_INLINE Vector<A> backward_vector(const BNActBackward<T>& p, int64_t i, Vector<A> g, Vector<A> x, Vector<A> scale,
                                      Vector<A> shift) {
  if constexpr (activation == Activation::none) return g;
  if (activation == Activation::relu && p.mask) return load_mask<A>(p.mask + i) ? g : Vector<A>{};
  Vector<A> z = x * scale + shift;
  if (p.residual) z += load(p.residual + i);
  return pull_back<activation>(z, g, p.negative_slope);
}

// `size` values of one channel, and their moments. Runs longer than kRun are combined in double.
template <Activation activation, typename T, typename A>
Moments<double> forward_run(BNActForward<T> p, int64_t size, A scale, A shift) {
  constexpr int kWidth = kLanes<A>;
  constexpr int64_t kRun = 256 * kWidth;  // a lane adds 64 values
  const Vector<A> scales = splat(scale), shifts = splat(shift);
  Vector<A> lanes;
  for (int l = 0; l < kWidth; ++l) lanes[l] = l;
  Moments<double> total;
  for (int64_t start = 0; start < size; start += kRun) {
    const int64_t count = size - start < kRun ? size - start : kRun;
    const T* x = p.x + start;
    const A center = widen(x[0]);
    Vector<A> sums[4] = {}, squares[4] = {};
    int64_t i = 0;
    for (; i + 4 * kWidth <= count; i += 4 * kWidth) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const int64_t j = i + v * kWidth;
        const Vector<A> values = load(x + j), d = values - center;
        sums[v] += d;
        squares[v] += d * d;
        put_forward<activation>(p, start + j, values, scales, shifts);
      }
    }
    if (i < count && count >= kWidth) {
      const auto rest = [&](int64_t j, int fresh) {
        const Vector<A> values = load(x + j), d = lanes < A(fresh) ? Vector<A>{} : values - center;
        sums[0] += d;
        squares[0] += d * d;
        put_forward<activation>(p, start + j, values, scales, shifts);
      };
      for (; i + kWidth <= count; i += kWidth) rest(i, 0);
      if (i < count) rest(count - kWidth, static_cast<int>(i + kWidth - count));
    } else if (i < count) {
      const Vector<A> values = load_first<A>(x, count, center), d = values - center;
      sums[0] += d;
      squares[0] += d * d;
      T residual[kWidth] = {}, y[kWidth];
      uint8_t mask[kWidth];
      if (p.residual) memcpy(residual, p.residual + start, count * sizeof(T));
      const BNActForward<T> padded{x, p.residual ? residual : nullptr, y, mask, p.negative_slope};
      put_forward<activation>(padded, 0, values, scales, shifts);
      memcpy(p.y + start, y, count * sizeof(T));
      if (p.mask) memcpy(p.mask + start, mask, count);
    }
    total = combine(total, from_shifted_sums<double>(count, center, sum<A>((sums[0] + sums[1]) + (sums[2] + sums[3])),
                                                     sum<A>((squares[0] + squares[1]) + (squares[2] + squares[3]))));
  }
  return total;
}

// Calls body(start, lane) for the vectors of a row of `period` lanes; lanes of the vector before `lane` were in the one
// before. period is at least a vector.
template <typename A, typename Body>
EXML_INLINE void along_row(int64_t period, Body body) {
  constexpr int kWidth = kLanes<A>;
  int64_t lane = 0;
  for (; lane + kWidth <= period; lane += kWidth) body(lane, 0);
  if (lane < period) body(period - kWidth, static_cast<int>(lane + kWidth - period));
}

// `period` lanes, each with constants of its own, in `rows` rows, kRows at a time: memory is read in order. Adds to
// sums and squares those of x - center.
template <Activation activation, int kRows, typename T, typename A>
EXML_INLINE void forward_some_rows(const BNActForward<T>& p, int64_t begin, int64_t period, const A* scale,
                                   const A* shift, const A* center, A* sums, A* squares) {
  Vector<A> lanes;
  for (int l = 0; l < kLanes<A>; ++l) lanes[l] = l;
  along_row<A>(period, [&](int64_t lane, int fresh) __attribute__((always_inline)) {
    const Vector<A> scales = load(scale + lane), shifts = load(shift + lane), centers = load(center + lane);
    Vector<A> sum = {}, square = {};
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const int64_t i = begin + r * period + lane;
      const Vector<A> x = load(p.x + i), d = x - centers;
      sum += d;
      square += d * d;
      put_forward<activation>(p, i, x, scales, shifts);
    }
    if (fresh > 0) {
      sum = lanes < A(fresh) ? Vector<A>{} : sum;
      square = lanes < A(fresh) ? Vector<A>{} : square;
    }
    store(sums + lane, load(sums + lane) + sum);
    store(squares + lane, load(squares + lane) + square);
  });
}

// Whether to take four rows at a time, which share their constants. Of rows of a few cache lines to half a page, four
// at a time defeat the prefetcher and took up to twice as long.
template <typename T>
bool by_fours(int64_t period) {
  const int64_t bytes = period * int64_t(sizeof(T));
  return bytes <= 320 || bytes >= 2048;
}

template <Activation activation, typename T, typename A>
void forward_rows(BNActForward<T> p, int64_t rows, int64_t period, const A* scale, const A* shift, const A* center,
                  A* sums, A* squares) {
  int64_t r = 0;
  for (; by_fours<T>(period) && r + 4 <= rows; r += 4)
    forward_some_rows<activation, 4>(p, r * period, period, scale, shift, center, sums, squares);
  for (; r + 2 <= rows; r += 2)
    forward_some_rows<activation, 2>(p, r * period, period, scale, shift, center, sums, squares);
  for (; r < rows; ++r) forward_some_rows<activation, 1>(p, r * period, period, scale, shift, center, sums, squares);
}

// `size` values of one channel of grad_x = scale d + offset + slope (x - mean) and grad_residual = d.
template <Activation activation, typename T, typename A>
void backward_run(BNActBackward<T> p, int64_t size, A scale, A shift, PixelGradient<A> moments) {
  constexpr int kWidth = kLanes<A>;
  const Vector<A> scales = splat(scale), shifts = splat(shift);
  const auto at = [&](int64_t i) {
    const Vector<A> x = load(p.x + i);
    const Vector<A> d = backward_vector<activation>(p, i, load(p.grad + i), x, scales, shifts);
    if (p.grad_residual) store(p.grad_residual + i, d);
    store(p.grad_x + i, d * scales + ((x - moments.mean) * moments.slope + moments.offset));
  };
  int64_t i = 0;
  for (; i + 4 * kWidth <= size; i += 4 * kWidth) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) at(i + v * kWidth);
  }
  if (size >= kWidth) {
    for (; i + kWidth <= size; i += kWidth) at(i);
    if (i < size) at(size - kWidth);
  } else {
    const Vector<A> x = load_first<A>(p.x, size, A(0)), g = load_first<A>(p.grad, size, A(0));
    BNActBackward<T> padded = p;
    T residual[kWidth] = {};
    uint8_t mask[kWidth] = {};
    if (p.residual) padded.residual = (const T*)memcpy(residual, p.residual, size * sizeof(T));
    if (p.mask) padded.mask = (const uint8_t*)memcpy(mask, p.mask, size);
    const Vector<A> d = backward_vector<activation>(padded, 0, g, x, scales, shifts);
    if (p.grad_residual) store_first<A>(p.grad_residual, size, d);
    store_first<A>(p.grad_x, size, d * scales + ((x - moments.mean) * moments.slope + moments.offset));
  }
}

template <Activation activation, int kRows, typename T, typename A>
EXML_INLINE void backward_some_rows(const BNActBackward<T>& p, int64_t begin, int64_t period, const A* scale,
                                    const A* shift, PixelGradient<const A*> moments) {
  along_row<A>(period, [&](int64_t lane, int) __attribute__((always_inline)) {
    const Vector<A> scales = load(scale + lane), shifts = load(shift + lane), mean = load(moments.mean + lane),
                    slope = load(moments.slope + lane), offset = load(moments.offset + lane);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const int64_t i = begin + r * period + lane;
      const Vector<A> x = load(p.x + i);
      const Vector<A> d = backward_vector<activation>(p, i, load(p.grad + i), x, scales, shifts);
      if (p.grad_residual) store(p.grad_residual + i, d);
      store(p.grad_x + i, d * scales + ((x - mean) * slope + offset));
    }
  });
}

template <Activation activation, typename T, typename A>
void backward_rows(BNActBackward<T> p, int64_t rows, int64_t period, const A* scale, const A* shift,
                   PixelGradient<const A*> moments) {
  int64_t r = 0;
  for (; by_fours<T>(period) && r + 4 <= rows; r += 4)
    backward_some_rows<activation, 4>(p, r * period, period, scale, shift, moments);
  for (; r < rows; ++r) backward_some_rows<activation, 1>(p, r * period, period, scale, shift, moments);
}

// The same with the activation chosen at run time.
template <typename T, typename A>
Moments<double> forward_run(Activation activation, const BNActForward<T>& p, int64_t size, A scale, A shift) {
  Moments<double> moments;
  with_activation(activation, [&](auto a) { moments = forward_run<a()>(p, size, scale, shift); });
  return moments;
}
template <typename T, typename A>
void forward_rows(Activation activation, const BNActForward<T>& p, int64_t rows, int64_t period, const A* scale,
                  const A* shift, const A* center, A* sums, A* squares) {
  with_activation(activation, [&](auto a) { forward_rows<a()>(p, rows, period, scale, shift, center, sums, squares); });
}
template <typename T, typename A>
void backward_run(Activation activation, const BNActBackward<T>& p, int64_t size, A scale, A shift,
                  PixelGradient<A> moments) {
  with_activation(activation, [&](auto a) { backward_run<a()>(p, size, scale, shift, moments); });
}
template <typename T, typename A>
void backward_rows(Activation activation, const BNActBackward<T>& p, int64_t rows, int64_t period, const A* scale,
                   const A* shift, PixelGradient<const A*> moments) {
  with_activation(activation, [&](auto a) { backward_rows<a()>(p, rows, period, scale, shift, moments); });
}

}  // namespace exml::cpu::EXML_CAPABILITY
