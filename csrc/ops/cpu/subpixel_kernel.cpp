#include <algorithm>
#include <cstring>

#include "ops/dispatch.h"
#include "ops/library_ops.h"
#include "ops/subpixel.h"

namespace exml {
namespace {

// Bytes that one task of a parallel loop writes.
constexpr int64_t kTask = 65536;

// `count` runs of `size` bytes, or of kSize where that is not 0, which lie `step` bytes apart.
template <int64_t kSize>
void copy_runs(const char* from, int64_t step, char* to, int64_t size, int64_t count) {
  const int64_t bytes = kSize ? kSize : size;
  for (int64_t j = 0; j < count; ++j) memcpy(to + j * bytes, from + j * step, bytes);
}

}  // namespace

Tensor interleave_phases_cpu(const Tensor& unordered, int64_t stride, Sizes padding, Sizes sizes) {
  const Tensor phases = as_contiguous(unordered, MemoryFormat::ChannelsLast);
  Tensor out = empty(sizes, phases.scalar_type(), phases, MemoryFormat::ChannelsLast);
  const int64_t height = sizes[2], top = padding[0], left = padding[1];
  const int64_t rows = phases.size(2), places = phases.size(3);
  // In bytes. A row of a place is a run: its pixels are adjacent, here and in the image.
  const int64_t pixel = sizes[1] * phases.element_size(), line = sizes[3] * pixel;
  const int64_t run = stride * pixel, place = stride * run;
  const auto* source = static_cast<const char*>(phases.const_data_ptr());
  auto* target = static_cast<char*>(out.mutable_data_ptr());
  // bfloat16 and float32 images of three channels at stride 2
  const auto copy = run == 12 ? copy_runs<12> : run == 24 ? copy_runs<24> : copy_runs<0>;
  parallel_for(
      0, sizes[0] * height, std::max<int64_t>(1, kTask / std::max<int64_t>(1, line)), [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t row = task % height + top;
          char *to = target + task * line, *const stop = to + line;
          if (row / stride < rows) {
            const char* from = source + ((task / height * rows + row / stride) * places) * place + row % stride * run;
            int64_t j = left / stride;
            const auto part = [&](int64_t skipped) {  // of a run that the image's border cuts
              const int64_t bytes = std::min(run - skipped, stop - to);
              if (j >= places || bytes <= 0) return;
              memcpy(to, from + j * place + skipped, bytes);
              to += bytes;
              ++j;
            };
            if (left % stride) part(left % stride * pixel);
            const int64_t whole = std::clamp<int64_t>(places - j, 0, (stop - to) / run);
            copy(from + j * place, place, to, run, whole);
            to += whole * run;
            j += whole;
            part(0);
          }
          memset(to, 0, stop - to);
        }
      });
  return out;
}

}  // namespace exml
