// Sums behind the image priors and their gradient coefficients: total variation, Gaussian-blur residual, l2 norm.
#pragma once

#include "math/platform.h"

namespace exml {

constexpr int kMaxBlurKernel = 15;

// Sums of one image: |d_i| and d_i^2 over the four neighbour shifts (horizontal, vertical, two diagonals),
// then the squared blur residual and the squared pixels.
enum PriorSum { kAbs = 0, kSquare = 4, kBlur = 8, kNorm = 9, kPriorSums = 10 };

// The losses formed from the sums, in the order in which the op returns them.
enum PriorLoss { kTvL1, kTvL2, kBlurL2, kPixelL2, kPriorLosses };

// Number of differences d_i among `images` images (or planes) of height x width pixels.
EXML_HD double difference_count(int i, double images, int64_t height, int64_t width) {
  return images * double(i == 0 ? height : height - 1) * double(i == 1 ? width : width - 1);
}

EXML_HD void prior_losses(const double* sums, double images, int64_t height, int64_t width, double* losses) {
  losses[kTvL1] = losses[kTvL2] = 0;
  for (int i = 0; i < 4; ++i) {
    losses[kTvL1] += sums[kAbs + i] / difference_count(i, images, height, width);
    losses[kTvL2] += std::sqrt(sums[kSquare + i]);
  }
  losses[kBlurL2] = std::sqrt(sums[kBlur]);
  losses[kPixelL2] = std::sqrt(sums[kNorm]);
}

// The factors of sign(d_i), of d_i, of the residual's part and of the pixel itself in the gradient of a pixel.
template <typename A>
struct PriorPull {
  A abs[4], square[4], blur, norm;
};

// grads: d objective / d loss, one for each loss. A norm's gradient at zero is zero.
template <typename A>
EXML_HD PriorPull<A> prior_pull(const double* grads, const double* sums, double images, int64_t height, int64_t width) {
  const auto over_norm = [&](double grad, double sum) { return A(sum == 0 ? 0 : grad / std::sqrt(sum)); };
  PriorPull<A> pull;
  for (int i = 0; i < 4; ++i) {
    pull.abs[i] = A(grads[kTvL1] / difference_count(i, images, height, width));
    pull.square[i] = over_norm(grads[kTvL2], sums[kSquare + i]);
  }
  pull.blur = over_norm(grads[kBlurL2], sums[kBlur]);
  pull.norm = over_norm(grads[kPixelL2], sums[kNorm]);
  return pull;
}

// d objective / d d_i for one difference d_i; the other pixel of the pair gets it with the opposite sign.
template <typename A>
EXML_HD A difference_pull(const PriorPull<A>& pull, int i, A difference) {
  const A direction = difference != difference ? difference : A(difference > A(0)) - A(difference < A(0));
  return pull.abs[i] * direction + pull.square[i] * difference;
}

// Index of a pixel outside the image, reflected at the border without repeating it.
EXML_HD int64_t reflect(int64_t i, int64_t size) {
  if (i < 0) i = -i;
  return i < size ? i : 2 * (size - 1) - i;
}

// Normalised Gaussian window of 2 * radius + 1 taps.
template <typename A>
struct BlurWindow {
  int radius;
  A taps[kMaxBlurKernel];
};

template <typename A>
inline BlurWindow<A> gaussian_window(int kernel_size, double sigma) {
  BlurWindow<A> window{kernel_size / 2, {}};
  double total = 0;
  const auto weight = [&](int i) { return std::exp(-0.5 * std::pow((i - window.radius) / sigma, 2)); };
  for (int i = 0; i < kernel_size; ++i) total += weight(i);
  for (int i = 0; i < kernel_size; ++i) window.taps[i] = A(weight(i) / total);
  return window;
}

// Weight with which pixel i takes part in the blurred pixel k along one axis of the given size, borders reflected:
// an entry of the blur matrix B. The adjoint reads the same entry with i and k exchanged.
template <typename A>
EXML_HD A blur_weight(int64_t k, int64_t i, int64_t size, const BlurWindow<A>& window) {
  const int64_t images[3] = {i, -i, 2 * (size - 1) - i};
  A weight = 0;
  for (int m = 0; m < 3; ++m) {
    if ((m == 1 && i == 0) || (m == 2 && i == size - 1)) continue;
    const int64_t tap = images[m] - k + window.radius;
    if (tap >= 0 && tap <= 2 * window.radius) weight += window.taps[tap];
  }
  return weight;
}

}  // namespace exml
