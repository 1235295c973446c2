// Inner loops of image_prior, compiled once for each instruction set by for_each_capability.h.
namespace exml::cpu::EXML_CAPABILITY {

// Calls f(e, lanes to count) for vectors that cover [begin, end), the last one overlapping its predecessor with the
// lanes already done masked out; false where the range is shorter than a vector.
template <typename A, typename F>
EXML_INLINE bool along_vectors(int64_t begin, int64_t end, F f) {
  constexpr int kWidth = kLanes<A>;
  if (end - begin < kWidth) return false;
  const Mask<A> all = Vector<A>{} == Vector<A>{};
  int64_t e = begin;
  for (; e + kWidth <= end; e += kWidth) f(e, all);
  if (e < end) {
    const int64_t last = end - kWidth;
    Mask<A> fresh;
    for (int i = 0; i < kWidth; ++i) fresh[i] = last + i >= e ? -1 : 0;
    f(last, fresh);
  }
  return true;
}

template <typename A>
EXML_INLINE Vector<A> only(Mask<A> lanes, Vector<A> v) {
  return lanes ? v : Vector<A>{};
}

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
    const auto blur = [&](int64_t e, auto value) {
      for (int64_t t = 0; t <= 2 * radius; ++t)
        value += window.taps[t] * load_as<decltype(value)>(padded + e + t * step);
      return value;
    };
    if (!along_vectors<A>(0, length, [&](int64_t e, Mask<A>) { store(blurred + e, blur(e, Vector<A>{})); }))
      for (int64_t e = 0; e < length; ++e) blurred[e] = blur(e, A(0));
  }
  for (int64_t i = 0; i < plane.height; ++i) {
    const A* rows[kMaxBlurKernel];
    for (int64_t t = -radius; t <= radius; ++t) rows[t + radius] = scratch + reflect(i + t, plane.height) * length;
    A* out = residual + i * length;
    const auto remainder = [&](int64_t e, auto value) {
      for (int64_t t = 0; t <= 2 * radius; ++t) value -= window.taps[t] * load_as<decltype(value)>(rows[t] + e);
      return value;
    };
    const A* row = plane.row(i);
    if (!along_vectors<A>(0, length, [&](int64_t e, Mask<A>) { store(out + e, remainder(e, load(row + e))); }))
      for (int64_t e = 0; e < length; ++e) out[e] = remainder(e, row[e]);
  }
}

// Adds to `sums` those of the plane (PriorSum).
template <typename A>
void plane_sums(const Plane<A>& plane, const A* residual, double* sums) {
  const int64_t length = plane.length, step = plane.step, inner = length - step;
  for (int64_t i = 0; i < plane.height; ++i) {
    const bool below = i + 1 < plane.height;
    const A *row = plane.row(i), *next = below ? row + length : row, *r = residual + i * length;
    Vector<A> absolute[4] = {}, square[4] = {}, blur = {}, norm = {};
    const auto add = [&](int direction, Mask<A> lanes, Vector<A> d) {
      d = only<A>(lanes, d);
      absolute[direction] += d < Vector<A>{} ? -d : d;
      square[direction] += d * d;
    };
    const auto add_one = [&](int sum, A value) { sums[sum] += value; };
    const auto add_scalar = [&](int direction, A d) {
      add_one(kAbs + direction, d < A(0) ? -d : d);
      add_one(kSquare + direction, d * d);
    };
    if (!along_vectors<A>(0, inner, [&](int64_t e, Mask<A> lanes) {
          const Vector<A> here = load(row + e), right = load(row + e + step);
          add(0, lanes, here - right);
          if (below) {
            const Vector<A> under = load(next + e);
            add(1, lanes, here - under);
            add(2, lanes, under - right);
            add(3, lanes, here - load(next + e + step));
          }
        }))
      for (int64_t e = 0; e < inner; ++e) {
        add_scalar(0, row[e] - row[e + step]);
        if (below) {
          add_scalar(1, row[e] - next[e]);
          add_scalar(2, next[e] - row[e + step]);
          add_scalar(3, row[e] - next[e + step]);
        }
      }
    if (below)
      for (int64_t e = inner; e < length; ++e) add_scalar(1, row[e] - next[e]);
    if (!along_vectors<A>(0, length, [&](int64_t e, Mask<A> lanes) {
          const Vector<A> rest = only<A>(lanes, load(r + e)), here = only<A>(lanes, load(row + e));
          blur += rest * rest;
          norm += here * here;
        }))
      for (int64_t e = 0; e < length; ++e) {
        add_one(kBlur, r[e] * r[e]);
        add_one(kNorm, row[e] * row[e]);
      }
    for (int direction = 0; direction < 4; ++direction) {
      sums[kAbs + direction] += sum<A>(absolute[direction]);
      sums[kSquare + direction] += sum<A>(square[direction]);
    }
    sums[kBlur] += sum<A>(blur);
    sums[kNorm] += sum<A>(norm);
  }
}

template <typename A>
EXML_INLINE Vector<A> difference_pull(const PriorPull<A>& pull, int i, Vector<A> d) {
  const Vector<A> one = splat(A(1));
  const Vector<A> direction = d != d ? d : (d > Vector<A>{} ? one : (d < Vector<A>{} ? -one : Vector<A>{}));
  return pull.abs[i] * direction + pull.square[i] * d;
}

// What the reflected taps add to the weight with which pixel j's gradient reads the residual at k, near the two borders
// of a row; elsewhere they add nothing.
template <typename A>
struct BorderWeights {
  struct Entry {
    int64_t j, k;
    A extra;
  };
  Entry entries[2 * (kMaxBlurKernel / 2 + 1) * kMaxBlurKernel];
  int count = 0;

  BorderWeights(int64_t width, const BlurWindow<A>& window) {
    const int64_t radius = window.radius;
    for (int64_t j = 0; j < width; ++j) {
      if (j == radius + 1) j = std::max(j, width - 1 - radius);
      if (j >= width) break;
      const int64_t from = std::max<int64_t>(0, j - radius), to = std::min(width - 1, j + radius);
      for (int64_t k = from; k <= to; ++k) {
        const A extra = blur_weight(k, j, width, window) - window.taps[j - k + radius];
        if (extra != A(0)) entries[count++] = {j, k, extra};
      }
    }
  }
};

// out = gradient of the pulled losses. residual: as blur_residual left it; scratch: as there. Without kBlurred, of
// losses whose pull.blur is zero: residual and scratch are not read. Without kSigned, of those whose pull.abs is zero.
template <bool kBlurred, bool kSigned, typename A>
void gradient_of_plane(const Plane<A>& plane, const PriorPull<A>& pull, const BlurWindow<A>& window, const A* residual,
                       A* scratch, A* out) {
  const int64_t height = plane.height, length = plane.length, step = plane.step;
  const int64_t radius = window.radius;
  bool apart = kSigned;  // most recipes weight only one of total variation and blur
  for (int d = 0; d < 4; ++d) apart = apart || pull.square[d] != A(0);
  A *padded = scratch, *column = padded + radius * step;
  if (kBlurred) memset(padded, 0, (length + 2 * radius * step) * sizeof(A));
  const BorderWeights<A> borders(kBlurred ? plane.width() : 0, window);
  for (int64_t i = 0; i < height; ++i) {
    const A *row = plane.row(i), *r = kBlurred ? residual + i * length : nullptr;
    const A *up = i > 0 ? row - length : nullptr, *down = i + 1 < height ? row + length : nullptr;
    A* grad = out + i * length;
    if (kBlurred) {
      // The residual's part is its adjoint, r - B^T r: down the columns, then along the row.
      const int64_t first = std::max<int64_t>(0, i - radius), last = std::min(height - 1, i + radius);
      A weights[kMaxBlurKernel];
      for (int64_t k = first; k <= last; ++k) weights[k - first] = blur_weight(k, i, height, window);
      const auto down_column = [&](int64_t e, auto value) {
        for (int64_t k = first; k <= last; ++k)
          value += weights[k - first] * load_as<decltype(value)>(residual + k * length + e);
        return value;
      };
      if (!along_vectors<A>(0, length, [&](int64_t e, Mask<A>) { store(column + e, down_column(e, Vector<A>{})); }))
        for (int64_t e = 0; e < length; ++e) column[e] = down_column(e, A(0));
    }
    const auto without_differences = [&](int64_t e, auto value) {
      using V = decltype(value);
      if (!kBlurred) return V(pull.norm * load_as<V>(row + e));
      for (int64_t t = 0; t <= 2 * radius; ++t) value += window.taps[t] * load_as<V>(padded + e + t * step);
      return V(pull.norm * load_as<V>(row + e) + pull.blur * (load_as<V>(r + e) - value));
    };
    // The gradient of a pixel has one term for each neighbour, because each difference has two pixels.
    const auto away_from = [&](auto value, int64_t e, int direction, const A* other) {
      using V = decltype(value);
      const V d = load_as<V>(row + e) - load_as<V>(other);
      return V(value + (kSigned ? difference_pull(pull, direction, d) : V(pull.square[direction] * d)));
    };
    const auto vertically = [&](int64_t e, auto value) {
      if (up) value = away_from(value, e, 1, up + e);
      if (down) value = away_from(value, e, 1, down + e);
      return value;
    };
    const auto leftwards = [&](int64_t e, auto value) {
      value = away_from(value, e, 0, row + e - step);
      if (up) value = away_from(value, e, 3, up + e - step);
      if (down) value = away_from(value, e, 2, down + e - step);
      return value;
    };
    const auto rightwards = [&](int64_t e, auto value) {
      value = away_from(value, e, 0, row + e + step);
      if (up) value = away_from(value, e, 2, up + e + step);
      if (down) value = away_from(value, e, 3, down + e + step);
      return value;
    };
    const auto one = [&](int64_t e) {
      A value = vertically(e, without_differences(e, A(0)));
      if (e >= step) value = leftwards(e, value);
      if (e < length - step) value = rightwards(e, value);
      grad[e] = value;
    };
    if (!apart) {
      if (!along_vectors<A>(0, length,
                            [&](int64_t e, Mask<A>) { store(grad + e, without_differences(e, Vector<A>{})); }))
        for (int64_t e = 0; e < length; ++e) grad[e] = without_differences(e, A(0));
    } else if (along_vectors<A>(step, length - step, [&](int64_t e, Mask<A>) {
                 store(grad + e, rightwards(e, leftwards(e, vertically(e, without_differences(e, Vector<A>{})))));
               })) {
      for (int64_t e = 0; e < step; ++e) one(e);
      for (int64_t e = length - step; e < length; ++e) one(e);
    } else {
      for (int64_t e = 0; e < length; ++e) one(e);
    }
    if (kBlurred)  // near the borders
      for (int n = 0; n < borders.count; ++n) {
        const auto [j, k, extra] = borders.entries[n];
        for (int64_t c = 0; c < step; ++c) grad[j * step + c] -= pull.blur * extra * column[k * step + c];
      }
  }
}

template <typename A>
void plane_gradient(const Plane<A>& plane, const PriorPull<A>& pull, const BlurWindow<A>& window, const A* residual,
                    A* scratch, A* out) {
  // Comparisons that are true of NaN.
  const bool blurred = pull.blur != A(0);
  bool is_signed = false;
  for (int d = 0; d < 4; ++d) is_signed = is_signed || pull.abs[d] != A(0);
  const auto compute = blurred ? (is_signed ? gradient_of_plane<true, true, A> : gradient_of_plane<true, false, A>)
                               : (is_signed ? gradient_of_plane<false, true, A> : gradient_of_plane<false, false, A>);
  compute(plane, pull, window, residual, scratch, out);
}

}  // namespace exml::cpu::EXML_CAPABILITY
