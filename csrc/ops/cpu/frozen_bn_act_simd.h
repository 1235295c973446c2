// Inner loops of frozen_bn_act, compiled once for each instruction set by for_each_capability.h.
namespace exml::cpu::EXML_CAPABILITY {

#include "math/activation_formulas.h"

// One vector of y = act(scale x + shift (+ residual)).
template <Activation activation, typename A, typename T>
EXML_INLINE Vector<A> forward_vector(Vector<A> x, Vector<A> scale, Vector<A> shift, const T* residual, A slope) {
  Vector<A> z = x * scale + shift;
  if (residual) z += load(residual);
  return activate<activation>(z, slope);
}

// One vector of d = act'(scale x + shift (+ residual)) g.
template <Activation activation, typename A, typename T>
EXML_INLINE Vector<A> backward_vector(Vector<A> g, Vector<A> x, Vector<A> scale, Vector<A> shift, const T* residual,
                                      A slope) {
  if constexpr (activation == Activation::none) return g;
  Vector<A> z = x * scale + shift;
  if (residual) z += load(residual);
  return pull_back<activation>(z, g, slope);
}

template <typename T>
EXML_INLINE const T* ahead(const T* p, int64_t i) {
  return p ? p + i : nullptr;
}

// `size` values of one channel, and their moments. Runs longer than kRun are combined in double.
template <Activation activation, typename T, typename A>
Moments<double> forward_run(BNActForward<T> p, int64_t size, A scale, A shift) {
  constexpr int64_t kRun = 4096;
  constexpr int kWidth = kLanes<A>;
  const Vector<A> scales = splat(scale), shifts = splat(shift);
  Vector<A> lanes;
  for (int l = 0; l < kWidth; ++l) lanes[l] = l;
  Moments<double> total;
  for (int64_t start = 0; start < size; start += kRun) {
    const int64_t count = size - start < kRun ? size - start : kRun;
    const T *x = p.x + start, *residual = ahead(p.residual, start);
    T* y = p.y + start;
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
        store(y + j, forward_vector<activation>(values, scales, shifts, ahead(residual, j), p.negative_slope));
      }
    }
    if (i < count && count >= kWidth) {
      const auto rest = [&](int64_t j, int fresh) {
        const Vector<A> values = load(x + j), d = lanes < A(fresh) ? Vector<A>{} : values - center;
        sums[0] += d;
        squares[0] += d * d;
        store(y + j, forward_vector<activation>(values, scales, shifts, ahead(residual, j), p.negative_slope));
      };
      for (; i + kWidth <= count; i += kWidth) rest(i, 0);
      if (i < count) rest(count - kWidth, static_cast<int>(i + kWidth - count));
    } else if (i < count) {
      const Vector<A> values = load_first<A>(x, count, center), d = values - center;
      sums[0] += d;
      squares[0] += d * d;
      T padded[kWidth] = {};
      if (residual) memcpy(padded, residual, count * sizeof(T));
      store_first<A>(y, count,
                     forward_vector<activation>(values, scales, shifts, residual ? padded : nullptr, p.negative_slope));
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
      store(p.y + i, forward_vector<activation>(x, scales, shifts, ahead(p.residual, i), p.negative_slope));
    }
    if (fresh > 0) {
      sum = lanes < A(fresh) ? Vector<A>{} : sum;
      square = lanes < A(fresh) ? Vector<A>{} : square;
    }
    store(sums + lane, load(sums + lane) + sum);
    store(squares + lane, load(squares + lane) + square);
  });
}

// Whether to take four rows at a time, which share their constants. Rows of a few cache lines to half a page are taken
// one by one: four at a time defeat the prefetcher and took up to twice as long.
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
  for (; r < rows; ++r) forward_some_rows<activation, 1>(p, r * period, period, scale, shift, center, sums, squares);
}

// `size` values of one channel of grad_x = scale d + offset + slope (x - mean) and grad_residual = d.
template <Activation activation, typename T, typename A>
void backward_run(BNActBackward<T> p, int64_t size, A scale, A shift, PixelGradient<A> moments) {
  constexpr int kWidth = kLanes<A>;
  const Vector<A> scales = splat(scale), shifts = splat(shift);
  const auto at = [&](int64_t i) {
    const Vector<A> x = load(p.x + i);
    const Vector<A> d =
        backward_vector<activation>(load(p.grad + i), x, scales, shifts, ahead(p.residual, i), p.negative_slope);
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
    T padded[kWidth] = {};
    if (p.residual) memcpy(padded, p.residual, size * sizeof(T));
    const Vector<A> d =
        backward_vector<activation>(g, x, scales, shifts, p.residual ? padded : nullptr, p.negative_slope);
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
      const Vector<A> d =
          backward_vector<activation>(load(p.grad + i), x, scales, shifts, ahead(p.residual, i), p.negative_slope);
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
