#include <algorithm>
#include <limits>
#include <vector>

#include "ops/adam_clip.h"
#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/dispatch.h"

#define EXML_SIMD_SOURCE "ops/cpu/adam_clip_simd.h"
#include "ops/cpu/for_each_capability.h"

namespace exml {
namespace {

// Values that one call of the inner loop handles, and that one task of a parallel loop handles.
constexpr int64_t kRun = 1024, kTask = 16384;

template <typename A>
std::vector<A> bounds(const OptionalTensor& given, int64_t channels, A otherwise) {
  if (!given) return std::vector<A>(channels, otherwise);
  const A* values = given->const_data_ptr<A>();
  return {values, values + channels};
}

// The same channels over and over, as pixels of a channels_last image have them.
template <typename A>
std::vector<A> repeated(const std::vector<A>& values, int64_t size) {
  std::vector<A> row(size);
  for (int64_t i = 0; i < size; ++i) row[i] = values[i % values.size()];
  return row;
}

// Values [begin, begin + size) of a (rows, columns) matrix whose transpose is in memory.
template <typename A, typename G>
void gather_transposed(const G* grad, int64_t rows, int64_t columns, int64_t begin, int64_t size, A* out) {
  int64_t row = begin / columns, column = begin % columns;
  for (int64_t i = 0; i < size; ++i) {
    out[i] = widen(grad[column * rows + row]);
    if (++column == columns) {
      column = 0;
      ++row;
    }
  }
}

template <typename A, typename G>
void step(const AdamClip& arguments, const G* grad) {
  const auto& layout = arguments.layout;
  const int64_t channels = layout.channels, plane = layout.plane, image = channels * plane;
  const double count = arguments.step.scalar_type() == ScalarType::Long
                           ? double(*arguments.step.const_data_ptr<int64_t>())
                           : double(*arguments.step.const_data_ptr<float>());
  EXML_CHECK_VALUE(count >= 1, "adam_clip_: step counts from 1, got ", count);
  const auto shared = adam_step<A>(arguments.rates, A(count), *arguments.lr.const_data_ptr<A>());
  const A infinity = std::numeric_limits<A>::infinity();
  auto low = bounds<A>(arguments.low, channels, -infinity), high = bounds<A>(arguments.high, channels, infinity);
  // Runs of one channel each, or of whole pixels.
  const int64_t run = layout.channels_last ? channels * std::max<int64_t>(1, kRun / channels) : std::min(kRun, plane);
  const int64_t unit = layout.channels_last ? image : plane, runs = (unit + run - 1) / run;
  if (layout.channels_last) {
    low = repeated(low, run);
    high = repeated(high, run);
  }
  const bool* active = values_or_null<bool>(arguments.active);
  A *x = arguments.x.mutable_data_ptr<A>(), *m = arguments.exp_avg.mutable_data_ptr<A>(),
    *v = arguments.exp_avg_sq.mutable_data_ptr<A>();
  const int64_t units = layout.batch * image / unit;
  parallel_for(0, units * runs, std::max<int64_t>(1, kTask / run), [&](int64_t begin, int64_t end) {
    std::vector<A> gathered(arguments.grad_transposed ? run : 0);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t u = task / runs, first = task % runs * run, size = std::min(run, unit - first);
      const int64_t at = u * unit + first, n = at / image;
      if (active && !active[n]) continue;
      const auto update = [&](const auto* g) {
        if (layout.channels_last)
          EXML_CPU_CALL(adam_run<true>, x + at, g, m + at, v + at, low.data(), high.data(), size, shared);
        else
          EXML_CPU_CALL(adam_run<false>, x + at, g, m + at, v + at, &low[u % channels], &high[u % channels], size,
                        shared);
      };
      if (arguments.grad_transposed) {
        const int64_t rows = layout.channels_last ? plane : channels;
        gather_transposed(grad + n * image, rows, image / rows, at - n * image, size, gathered.data());
        update(gathered.data());
      } else {
        update(grad + at);
      }
    }
  });
}

void adam_clip(const AdamClip& arguments) {
  if (arguments.x.numel() == 0) return;
  dispatch_pixels(arguments.grad, [&](auto* grad) {
    using G = PixelOf<decltype(grad)>;
    step<Accumulator<G>>(arguments, grad);
  });
}

STABLE_TORCH_LIBRARY_IMPL(exml, CPU, m) { m.impl("_adam_clip_", checked<&adam_clip_arguments, &adam_clip>); }

}  // namespace
}  // namespace exml
