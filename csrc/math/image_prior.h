// Sums behind the image priors and their gradient coefficients: total variation, Gaussian-blur residual, l2 norm.
#pragma once

#include "math/platform.h"

namespace exml {

constexpr int kMaxBlurKernel = 15;

// Sums of one image: |d_i| and d_i^2 over the four neighbour shifts (horizontal, vertical, two diagonals),
// then the squared blur residual and the squared pixels.
enum PriorSum { kAbs = 0, kSquare = 4, kBlur = 8, kNorm = 9, kPriorSums = 10 };

// How strongly each sum pulls on a pixel: what multiplies sign(d_i), d_i, the residual and the pixel itself.
template <typename A>
struct PriorPull {
  A abs[4], square[4], blur, norm;
};

// Index of a pixel outside the image, reflected at the border without repeating it.
EXML_HD int64_t reflect(int64_t i, int64_t size) {
  if (i < 0) i = -i;
  return i < size ? i : 2 * (size - 1) - i;
}

template <typename A>
EXML_HD A sign(A x) {
  return x != x ? x : A(x > A(0)) - A(x < A(0));
}

// Normalised Gaussian window, as many taps as kernel_size.
template <typename A>
EXML_HD void gaussian_window(int kernel_size, double sigma, A* window) {
  double total = 0;
  for (int i = 0; i < kernel_size; ++i) total += std::exp(-0.5 * std::pow((i - (kernel_size - 1) / 2) / sigma, 2));
  for (int i = 0; i < kernel_size; ++i)
    window[i] = A(std::exp(-0.5 * std::pow((i - (kernel_size - 1) / 2) / sigma, 2)) / total);
}

// Weight with which pixel i takes part in the blurred pixel k along one axis of the given size, borders reflected:
// an entry of the blur matrix B. The adjoint reads the same entry with i and k exchanged.
template <typename A>
EXML_HD A blur_weight(int64_t k, int64_t i, int64_t size, const A* window, int radius) {
  const int64_t images[3] = {i, -i, 2 * (size - 1) - i};
  A weight = 0;
  for (int m = 0; m < 3; ++m) {
    if ((m == 1 && i == 0) || (m == 2 && i == size - 1)) continue;
    const int64_t tap = images[m] - k + radius;
    if (tap >= 0 && tap <= 2 * radius) weight += window[tap];
  }
  return weight;
}

}  // namespace exml
