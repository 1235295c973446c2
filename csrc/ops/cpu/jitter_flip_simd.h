// Inner loops of jitter_flip, compiled once for each instruction set by for_each_capability.h; the compiler vectorises
// them.
namespace exml::cpu::EXML_CAPABILITY {

// `size` pixels that follow each other with distances kFrom and kTo, or with `from` and `to` where these are 0.
template <int kFrom, int kTo, typename T, typename U>
EXML_INLINE void copy_channel(const T* __restrict__ x, int64_t from, U* __restrict__ out, int64_t to, int64_t size) {
  const int64_t a = kFrom ? kFrom : from, b = kTo ? kTo : to;
  for (int64_t i = 0; i < size; ++i) narrow(Accumulator<U>(widen(x[i * a])), out[i * b]);
}

// Pixels of kChannels channels, which are adjacent in the result.
template <int kChannels, typename T, typename U>
EXML_INLINE void copy_pixels(const T* __restrict__ x, int64_t channel, int64_t from, U* __restrict__ out,
                             int64_t size) {
  for (int64_t i = 0; i < size; ++i)
    for (int c = 0; c < kChannels; ++c)
      narrow(Accumulator<U>(widen(x[i * from + c * channel])), out[i * kChannels + c]);
}

// `size` pixels of all channels, from neighbour to neighbour (step 1) or the other way round (step -1).
template <typename T, typename U>
EXML_INLINE void copy_run(const ShiftedImages& images, const T* x, int64_t step, U* out, int64_t size) {
  const int64_t channel = images.from[1], from = step * images.from[3], to = images.to[3];
  if (images.channels == 3 && images.to[1] == 1 && to == 3) return copy_pixels<3>(x, channel, from, out, size);
  for (int64_t c = 0; c < images.channels; ++c, x += channel, out += images.to[1]) {
    if (to == 1 && from == 1)
      copy_channel<1, 1>(x, from, out, to, size);
    else if (to == 1 && from == -1)
      copy_channel<-1, 1>(x, from, out, to, size);
    else
      copy_channel<0, 0>(x, from, out, to, size);
  }
}

// Rows begin to end - 1 of all images one after the other, each in all channels, so that channels_last is written as it
// lies.
template <typename T, typename U>
void shift_rows(const ShiftedImages& images, const T* x, U* out, int64_t begin, int64_t end) {
  const int64_t height = images.height, width = images.width;
  for (int64_t row = begin; row < end;) {
    const int64_t n = row / height, last = std::min(end, (n + 1) * height);
    const int64_t* down_right = images.shift + n * images.shift_step;
    const bool mirrored = images.flip[n * images.flip_step];
    const ShiftedLine lines(height, down_right[0], false, images.wrap, images.adjoint);
    const ShiftedLine columns(width, down_right[1], mirrored, images.wrap, images.adjoint);
    for (; row < last; ++row) {
      const int64_t i = row - n * height, source_row = lines.source(i);
      const T* line = x + n * images.from[0] + source_row * images.from[2];
      U* target = out + n * images.to[0] + i * images.to[2];
      for (int64_t j = 0; j < width;) {
        const int64_t k = source_row < 0 ? -1 : columns.source(j);
        U* place = target + j * images.to[3];
        if (k < 0) {
          for (int64_t c = 0; c < images.channels; ++c) narrow(Accumulator<U>(0), place[c * images.to[1]]);
          ++j;
          continue;
        }
        const int64_t run = std::min(width - j, mirrored ? k + 1 : width - k);
        copy_run(images, line + k * images.from[3], mirrored ? -1 : 1, place, run);
        j += run;
      }
    }
  }
}

}  // namespace exml::cpu::EXML_CAPABILITY
