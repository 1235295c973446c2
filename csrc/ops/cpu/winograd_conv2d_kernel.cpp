
#include <algorithm>
#include <type_traits>
#include <vector>

#include "ops/checks.h"
#include "ops/cpu/scratch.h"
#include "ops/dispatch.h"
#include "ops/winograd_conv2d.h"

#define EXML_SIMD_SOURCE "ops/cpu/winograd_conv2d_simd.h"
#include "ops/cpu/for_each_capability.h"

namespace exml {
namespace {

constexpr int64_t kTile = 4, kPlaces = 36, kVector = cpu::kMostLanes<float>;
// Floats of scratch memory for the factors of a block, a part of the second-level cache; bounds on the tiles of a
// block.
constexpr int64_t kBlockFloats = 1 << 16, kLeastRows = 28, kMostRows = 224;

// Number of blocks of tiles. Block sizes differ by at most one tile, and every thread gets the same number of blocks.
// floats: of the factors of a tile.
int64_t block_count(int64_t tiles, int64_t floats) {
  const int64_t fits = std::clamp(kBlockFloats / floats, kLeastRows, kMostRows),
                threads = torch::stable::get_num_threads();
  return std::min(tiles, threads * ((tiles + fits * threads - 1) / (fits * threads)));
}

std::vector<float> starts(const OptionalTensor& bias, int64_t panels) {
  std::vector<float> start(panels * kPanel, 0.0f);
  if (bias)
    std::copy_n(as_contiguous(as_type(*bias, ScalarType::Float)).const_data_ptr<float>(), bias->numel(), start.data());
  return start;
}

struct Plane {
  int64_t height, width, channels;
};

// The pixels of a tile's 6x6 window, zeros where it leaves the image.
template <typename T>
void window(const T* image, const Plane& in, int64_t top, int64_t left, const T* zeros, const T** at) {
  for (int64_t i = 0; i < 6; ++i) {
    for (int64_t j = 0; j < 6; ++j) {
      const int64_t y = top + i, x = left + j;
      const bool inside = y >= 0 && y < in.height && x >= 0 && x < in.width;
      at[6 * i + j] = inside ? image + (y * in.width + x) * in.channels : zeros;
    }
  }
}

template <typename T>
void convolve(const T* pixels, int64_t batch, const Plane& in, const float* panels, const float* start, Sizes padding,
              const Plane& out, T* result) {
  const int64_t down = (out.height + kTile - 1) / kTile, across = (out.width + kTile - 1) / kTile;
  // Rows lie a vector more than the channels apart. At powers of two they would compete for the same cache lines.
  const int64_t tiles = batch * down * across, row = in.channels + kVector;
  const int64_t blocks = block_count(tiles, kPlaces * row), rows = (tiles + blocks - 1) / blocks;
  const std::vector<T> zeros(in.channels, T{});
  parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    const int64_t place = rows * row, panel_place = rows * kPanel + kVector;
    float *factors = scratch<float, 0>(kPlaces * place), *products = scratch<float, 1>(kPlaces * panel_place);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * tiles / blocks, some = (block + 1) * tiles / blocks - first;
      const auto corner = [&](int64_t t, int64_t& n, int64_t& y, int64_t& x) {
        n = (first + t) / (down * across);
        y = (first + t) / across % down * kTile;
        x = (first + t) % across * kTile;
      };
      int64_t n, y, x;
      for (int64_t t = 0; t < some; ++t) {
        const T* at[kPlaces];
        corner(t, n, y, x);
        window(pixels + n * in.height * in.width * in.channels, in, y - padding[0], x - padding[1], zeros.data(), at);
        EXML_CPU_CALL(winograd_input, at, in.channels, factors + t * row, place);
      }
      for (int64_t k = 0; k < out.channels; k += kPanel) {
        const int64_t columns = std::min(kPanel, out.channels - k);
        const float* panel = panels + k * kPlaces * in.channels;
        for (int64_t p = 0; p < kPlaces; ++p)
          EXML_CPU_CALL(panel_product, factors + p * place, row, some, panel + p * in.channels * kPanel, in.channels,
                        columns, products + p * panel_place);
        for (int64_t t = 0; t < some; ++t) {
          corner(t, n, y, x);
          EXML_CPU_CALL(winograd_output, products + t * kPanel, panel_place, columns, start + k,
                        std::min(kTile, out.height - y), std::min(kTile, out.width - x),
                        result + ((n * out.height + y) * out.width + x) * out.channels + k, out.channels,
                        out.width * out.channels);
        }
      }
    }
  });
}

}  // namespace

Tensor winograd_conv2d_cpu(const Tensor& x, const Tensor& panels, const OptionalTensor& bias, int64_t outputs,
                           Sizes padding) {
  EXML_CHECK_VALUE(x.is_cpu() && panels.is_cpu(), "frozen_conv2d: x and Winograd's weights must be on the CPU, got ",
                   x.device(), " and ", panels.device());
  EXML_CHECK_VALUE(!bias || equal(bias->sizes(), {outputs}), "frozen_conv2d: bias must have shape (", outputs,
                   ",), got ", bias ? bias->sizes() : Sizes());
  EXML_CHECK_VALUE(
      x.scalar_type() != ScalarType::Double && x.size(1) >= kVector, "frozen_conv2d: x must have at least ", kVector,
      " channels and be float32 or bfloat16 where the weights are Winograd's, got ", x.sizes(), " ", x.scalar_type());
  EXML_CHECK_VALUE(panels.scalar_type() == ScalarType::Float && panels.is_contiguous() &&
                       equal(panels.sizes(), {(outputs + kPanel - 1) / kPanel, 6, 6, x.size(1), kPanel}),
                   "frozen_conv2d: Winograd's weights must be contiguous float32 of ceil(", outputs, " / ", kPanel,
                   ") panels for ", x.size(1), " channels, got ", panels.sizes(), " ", panels.scalar_type());
  const Plane in{x.size(2), x.size(3), x.size(1)};
  const Plane out{in.height + 2 * padding[0] - 2, in.width + 2 * padding[1] - 2, outputs};
  EXML_CHECK_VALUE(out.height > 0 && out.width > 0,
                   "frozen_conv2d: kernels of 3x3 are larger than the padded images of x, ", x.sizes());
  Tensor result = empty({x.size(0), outputs, out.height, out.width}, x.scalar_type(), x, MemoryFormat::ChannelsLast);
  if (result.numel() == 0) return result;
  const std::vector<float> start = starts(bias, panels.size(0));
  dispatch_pixels(x, [&](auto* pixels) {
    using T = PixelOf<decltype(pixels)>;
    if constexpr (!std::is_same_v<T, double>)
      convolve(pixels, x.size(0), in, panels.const_data_ptr<float>(), start.data(), padding, out,
               static_cast<T*>(result.mutable_data_ptr()));
  });
  return result;
}

}  // namespace exml
