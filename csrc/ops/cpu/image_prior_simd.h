// Inner loops of image_prior, compiled once for each instruction set by for_each_capability.h.
namespace exml::cpu::EXML_CAPABILITY {

// residual = plane - blur(plane). scratch: height * length values, then length + 2 * radius * step for a padded row.
template <typename A>
void blur_residual(const Plane<A>& plane, const BlurWindow<A>& window, A* scratch, A* residual) {
  const int64_t length = plane.length, step = plane.step, width = plane.width(), radius = window.radius;
  A* padded = scratch + plane.height * length;
  for (int64_t i = 0; i < plane.height; ++i) {
    memcpy(padded + radius * step, plane.row(i), length * sizeof(A));
    for (int64_t j = 1; j <= radius; ++j) {
      memcpy(padded + (radius - j) * step, plane.row(i) + j * step, step * sizeof(A));
      memcpy(padded + (radius + width - 1 + j) * step, plane.row(i) + (width - 1 - j) * step, step * sizeof(A));
    }
    A* blurred = scratch + i * length;
#pragma omp simd
    for (int64_t e = 0; e < length; ++e) blurred[e] = window.taps[0] * padded[e];
    for (int64_t t = 1; t <= 2 * radius; ++t) {
#pragma omp simd
      for (int64_t e = 0; e < length; ++e) blurred[e] += window.taps[t] * padded[e + t * step];
    }
  }
  for (int64_t i = 0; i < plane.height; ++i) {
    A* out = residual + i * length;
    memcpy(out, plane.row(i), length * sizeof(A));
    for (int64_t t = -radius; t <= radius; ++t) {
      const A* blurred = scratch + reflect(i + t, plane.height) * length;
      const A tap = window.taps[t + radius];
#pragma omp simd
      for (int64_t e = 0; e < length; ++e) out[e] -= tap * blurred[e];
    }
  }
}

// Adds to `sums` those of the differences between upper[e] and lower[e] for e < count.
template <typename A>
EXML_INLINE void add_differences(const A* upper, const A* lower, int64_t count, int direction, double* sums) {
  A absolute = 0, square = 0;
#pragma omp simd reduction(+ : absolute, square)
  for (int64_t e = 0; e < count; ++e) {
    const A d = upper[e] - lower[e];
    absolute += d < A(0) ? -d : d;
    square += d * d;
  }
  sums[kAbs + direction] += absolute;
  sums[kSquare + direction] += square;
}

template <typename A>
EXML_INLINE double sum_of_squares(const A* x, int64_t count) {
  A square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t e = 0; e < count; ++e) square += x[e] * x[e];
  return square;
}

template <typename A>
void plane_sums(const Plane<A>& plane, const A* residual, double* sums) {
  const int64_t length = plane.length, step = plane.step;
  for (int64_t i = 0; i < plane.height; ++i) {
    const A *row = plane.row(i), *next = row + length;
    add_differences(row, row + step, length - step, 0, sums);
    if (i + 1 < plane.height) {
      add_differences(row, next, length, 1, sums);
      add_differences(next, row + step, length - step, 2, sums);
      add_differences(row, next + step, length - step, 3, sums);
    }
    sums[kBlur] += sum_of_squares(residual + i * length, length);
    sums[kNorm] += sum_of_squares(row, length);
  }
}

// One difference's pull on both of its pixels, for e < count; `pulls` is scratch.
template <typename A>
EXML_INLINE void pull_apart(const PriorPull<A>& pull, int direction, const A* upper, const A* lower, int64_t count,
                            A* upper_grad, A* lower_grad, A* pulls) {
#pragma omp simd
  for (int64_t e = 0; e < count; ++e) {
    pulls[e] = difference_pull(pull, direction, upper[e] - lower[e]);
    upper_grad[e] += pulls[e];
  }
#pragma omp simd
  for (int64_t e = 0; e < count; ++e) lower_grad[e] -= pulls[e];
}

// out = gradient of the pulled losses. residual: as blur_residual left it; scratch: as there.
template <typename A>
void plane_gradient(const Plane<A>& plane, const PriorPull<A>& pull, const BlurWindow<A>& window, const A* residual,
                    A* scratch, A* out) {
  const int64_t height = plane.height, length = plane.length, step = plane.step, width = plane.width();
  const int64_t radius = window.radius;
  for (int64_t i = 0; i < height; ++i) {  // the residual's adjoint, r - B^T r: down the columns into `column`, then along
    A *grad = out + i * length, *padded = scratch, *column = padded + radius * step;
    memset(padded, 0, (length + 2 * radius * step) * sizeof(A));
    for (int64_t k = std::max<int64_t>(0, i - radius); k <= std::min(height - 1, i + radius); ++k) {
      const A weight = blur_weight(k, i, height, window);
      const A* r = residual + k * length;
#pragma omp simd
      for (int64_t e = 0; e < length; ++e) column[e] += weight * r[e];
    }
    const A *row = plane.row(i), *r = residual + i * length;
#pragma omp simd
    for (int64_t e = 0; e < length; ++e) grad[e] = pull.norm * row[e] + pull.blur * r[e];
    for (int64_t t = 0; t <= 2 * radius; ++t) {
      const A weight = pull.blur * window.taps[t];
#pragma omp simd
      for (int64_t e = 0; e < length; ++e) grad[e] -= weight * padded[e + t * step];
    }
    for (int64_t j = 0; j < width; ++j) {  // near the borders the reflected taps come on top
      if (j == radius + 1) j = std::max(j, width - 1 - radius);
      if (j >= width) break;
      for (int64_t k = std::max<int64_t>(0, j - radius); k <= std::min(width - 1, j + radius); ++k) {
        const A extra = pull.blur * (blur_weight(k, j, width, window) - window.taps[j - k + radius]);
        for (int64_t c = 0; c < step; ++c) grad[j * step + c] -= extra * column[k * step + c];
      }
    }
  }
  for (int64_t i = 0; i < height; ++i) {
    const A *row = plane.row(i), *next = row + length;
    A *grad = out + i * length, *next_grad = grad + length;
    pull_apart(pull, 0, row, row + step, length - step, grad, grad + step, scratch);
    if (i + 1 == height) break;
    pull_apart(pull, 1, row, next, length, grad, next_grad, scratch);
    pull_apart(pull, 2, next, row + step, length - step, next_grad, grad + step, scratch);
    pull_apart(pull, 3, row, next + step, length - step, grad, next_grad + step, scratch);
  }
}

}  // namespace exml::cpu::EXML_CAPABILITY
