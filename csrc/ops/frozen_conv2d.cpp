// Convolution with constant weights. It saves no activation, and its input gradient may be computed in a different way
// than the library's, from weights that were prepared once (exml_fast/engine/frozen_conv.py).
#include "ops/frozen_conv2d.h"

#include "ops/checks.h"
#include "ops/lane_conv2d.h"
#include "ops/library_ops.h"
#include "ops/schema.h"
#include "ops/subpixel.h"
#include "ops/window_conv2d.h"
#include "ops/winograd_conv2d.h"

namespace exml {

WeightLayout weight_layout_from(const char* argument, std::string_view name) {
  if (name == "plain") return WeightLayout::plain;
  if (name == "packed") return WeightLayout::packed;
  if (name == "windows") return WeightLayout::windows;
  if (name == "winograd") return WeightLayout::winograd;
  EXML_CHECK_VALUE(false, "frozen_conv2d: ", argument, " must be 'plain', 'packed', 'windows' or 'winograd', got '",
                   name, "'");
}

Adjoint adjoint_from(std::string_view name) {
  if (name == "library") return Adjoint::library;
  if (name == "convolution") return Adjoint::convolution;
  if (name == "zero_stuffed") return Adjoint::zero_stuffed;
  if (name == "subpixel") return Adjoint::subpixel;
  if (name == "lanes") return Adjoint::lanes;
  EXML_CHECK_VALUE(false,
                   "frozen_conv2d: adjoint must be 'library', 'convolution', 'zero_stuffed', 'subpixel' or 'lanes', "
                   "got '",
                   name, "'");
}

namespace {

constexpr auto kChannelsLast = MemoryFormat::ChannelsLast;

Tensor lane_forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Sizes padding) {
  const LaneConv2d arguments = lane_conv2d_arguments(x, weight, bias, padding);
  return x.is_cpu() ? lane_conv2d_cpu(arguments) : library_lane_conv2d(arguments);
}

Tensor lane_input(const Tensor& grad, const Tensor& weight, Sizes sizes, Sizes padding) {
  const LaneConv2dInput arguments = lane_conv2d_input_arguments(grad, weight, sizes, padding);
  return grad.is_cpu() ? lane_conv2d_input_cpu(arguments) : library_lane_conv2d_input(arguments);
}

bool is_packed(const Tensor& weight) { return weight.layout() == Layout::Mkldnn; }

// Prepared weights must lie as their layout says. The kernels of Winograd's layout check the sizes.
void check_prepared(const char* argument, const OptionalTensor& weight, WeightLayout layout, const Tensor& x) {
  EXML_CHECK_VALUE(weight.has_value(), "frozen_conv2d: ", argument,
                   " must be given for this layout or adjoint, got None");
  switch (layout) {
    case WeightLayout::plain:
      EXML_CHECK_VALUE(!is_packed(*weight) && weight->dim() == 4 && weight->scalar_type() == x.scalar_type(),
                       "frozen_conv2d: ", argument, " must have 4 dimensions and x's dtype ", x.scalar_type(),
                       " for layout 'plain', got ", weight->sizes(), " ", weight->scalar_type());
      return;
    case WeightLayout::packed:
      EXML_CHECK_VALUE(is_packed(*weight), "frozen_conv2d: ", argument,
                       " must be a tensor of oneDNN's for layout 'packed', got ", weight->layout());
      return;
    case WeightLayout::windows:
      EXML_CHECK_VALUE(!is_packed(*weight) && weight->dim() == 3 && weight->is_contiguous() && weight->is_cpu() &&
                           x.is_cpu() && weight->scalar_type() == accumulator_dtype(x),
                       "frozen_conv2d: ", argument, " must be contiguous ", accumulator_dtype(x),
                       " of 3 dimensions, on the CPU with x, for layout 'windows', got ", weight->sizes(), " ",
                       weight->scalar_type());
      return;
    case WeightLayout::winograd:
      EXML_CHECK_VALUE(!is_packed(*weight) && weight->dim() == 5, "frozen_conv2d: ", argument,
                       " must have 5 dimensions for layout 'winograd', got ", weight->sizes());
  }
}

Tensor convolve(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Sizes stride, Sizes padding,
                Sizes dilation, int64_t groups) {
  const auto compute = is_packed(weight) ? packed_convolution : convolution;
  return compute(x, weight, bias, stride, padding, dilation, groups);
}

void check_pairs(Sizes stride, Sizes padding, Sizes dilation) {
  EXML_CHECK_VALUE(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
                   "frozen_conv2d: stride, padding and dilation must be two numbers each, got ", stride, ", ", padding,
                   " and ", dilation);
}

Tensor forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Sizes stride, Sizes padding,
               Sizes dilation, int64_t groups, const OptionalTensor& forward_weight, std::string_view forward_layout,
               bool lanes) {
  check_pixels("frozen_conv2d", "x", x);
  EXML_CHECK_VALUE(x.dim() == 4 && weight.dim() == 4 && x.size(1) == weight.size(1) * groups,
                   "frozen_conv2d: x must have shape (N, C, H, W) with C = ", weight.size(1) * groups,
                   " to match weight of shape ", weight.sizes(), " and groups = ", groups, ", got ", x.sizes());
  EXML_CHECK_VALUE(weight.numel() > 0, "frozen_conv2d: weight must not be empty, got shape ", weight.sizes());
  EXML_CHECK_VALUE(x.scalar_type() == weight.scalar_type(), "frozen_conv2d: weight must have x's dtype ",
                   x.scalar_type(), ", got ", weight.scalar_type());
  check_device("frozen_conv2d", "weight", weight, "x", x);
  check_pairs(stride, padding, dilation);
  const WeightLayout layout = weight_layout_from("forward_layout", forward_layout);
  EXML_CHECK_VALUE(layout != WeightLayout::windows,
                   "frozen_conv2d: forward_layout must be 'plain', 'packed' or 'winograd', got 'windows'");
  EXML_CHECK_VALUE(!lanes || layout == WeightLayout::plain,
                   "frozen_conv2d: forward_layout must be 'plain' where lanes is True, got '", forward_layout, "'");
  if (lanes) return lane_forward(x, weight, bias, padding);
  if (layout == WeightLayout::plain) return convolve(x, weight, bias, stride, padding, dilation, groups);
  check_prepared("forward_weight", forward_weight, layout, x);
  if (layout == WeightLayout::packed) return convolve(x, *forward_weight, bias, stride, padding, dilation, groups);
  const std::array<int64_t, 2> ones{1, 1}, kernel{3, 3};
  EXML_CHECK_VALUE(
      equal(stride, ones) && equal(dilation, ones) && groups == 1 && equal(weight.sizes().slice(2), kernel),
      "frozen_conv2d: Winograd's weights are for kernels of 3x3, stride 1, dilation 1 and one group, got ",
      weight.sizes(), ", ", stride, ", ", dilation, " and ", groups);
  return winograd_conv2d_cpu(as_contiguous(x, kChannelsLast), *forward_weight, bias, weight.size(0), padding);
}

// A convolution of stride 1 of the gradient, with weights that were prepared for the adjoint of `weight`.
Tensor convolve_prepared(const Tensor& g, const Tensor& prepared, WeightLayout layout, const Tensor& weight,
                         int64_t kernel_width, Sizes padding, Sizes dilation, int64_t groups) {
  if (layout == WeightLayout::windows)
    return window_conv2d_cpu(as_contiguous(g, kChannelsLast), prepared, kernel_width, padding);
  if (layout == WeightLayout::winograd)
    return winograd_conv2d_cpu(as_contiguous(g, kChannelsLast), prepared, std::nullopt, weight.size(1), padding);
  return convolve(g, prepared, std::nullopt, {1, 1}, padding, dilation, groups);
}

// The gradient with zeros between its values, so that a convolution of stride 1 finishes the work.
Tensor with_zeros_between(const Tensor& grad, Sizes stride, int64_t height, int64_t width) {
  Tensor wide = empty({grad.size(0), grad.size(1), height, width}, grad.scalar_type(), grad, suggested_format(grad));
  torch::stable::zero_(wide);
  const Tensor rows = slice(wide, 2, 0, (grad.size(2) - 1) * stride[0] + 1, stride[0]);
  Tensor places = slice(rows, 3, 0, (grad.size(3) - 1) * stride[1] + 1, stride[1]);
  torch::stable::copy_(places, grad);
  return wide;
}

// The gradient of the output, for an input of these sizes.
void check_gradient(const Tensor& grad, const Tensor& weight, Sizes sizes, Sizes stride, Sizes padding, Sizes dilation,
                    int64_t groups) {
  check_pixels("frozen_conv2d", "grad", grad);
  EXML_CHECK_VALUE(weight.dim() == 4 && sizes.size() == 4 && groups > 0 && sizes[1] == weight.size(1) * groups,
                   "frozen_conv2d: sizes must be (N, C, H, W) with C = groups times the second of weight's shape ",
                   weight.sizes(), ", got ", sizes, " and groups = ", groups);
  EXML_CHECK_VALUE(weight.scalar_type() == grad.scalar_type(), "frozen_conv2d: weight must have grad's dtype ",
                   grad.scalar_type(), ", got ", weight.scalar_type());
  check_device("frozen_conv2d", "weight", weight, "grad", grad);
  check_pairs(stride, padding, dilation);
  std::array<int64_t, 4> output{sizes[0], weight.size(0), 0, 0};
  for (int64_t axis = 0; axis < 2; ++axis) {
    EXML_CHECK_VALUE(stride[axis] > 0 && dilation[axis] > 0 && padding[axis] >= 0,
                     "frozen_conv2d: stride and dilation must be positive, and padding at least 0, got ", stride, ", ",
                     dilation, " and ", padding);
    const int64_t room = sizes[2 + axis] + 2 * padding[axis] - dilation[axis] * (weight.size(2 + axis) - 1) - 1;
    output[2 + axis] = room < 0 ? 0 : room / stride[axis] + 1;
  }
  EXML_CHECK_VALUE(equal(grad.sizes(), output), "frozen_conv2d: grad must have shape ", Sizes(output), ", got ",
                   grad.sizes());
}

Tensor backward(const Tensor& grad, const Tensor& weight, Sizes sizes, bool channels_last, Sizes stride, Sizes padding,
                Sizes dilation, int64_t groups, const OptionalTensor& adjoint_weight, std::string_view adjoint_layout,
                std::string_view adjoint) {
  check_gradient(grad, weight, sizes, stride, padding, dilation, groups);
  const Adjoint how = adjoint_from(adjoint);
  const auto format = channels_last ? kChannelsLast : MemoryFormat::Contiguous;
  const Tensor g = as_contiguous(grad, format);
  if (how == Adjoint::library) {
    // The gradient does not depend on the input's values, so that memory without values stands in for it.
    const Tensor input = empty(sizes, weight.scalar_type(), weight, format);
    const Tensor gradient = convolution_gradient(g, input, weight, stride, padding, dilation, groups, true);
    return as_contiguous(gradient, format);  // newer versions of torch choose the format by the weight's
  }
  if (how == Adjoint::lanes) return lane_input(g, weight, sizes, padding);
  const WeightLayout layout = weight_layout_from("adjoint_layout", adjoint_layout);
  check_prepared("adjoint_weight", adjoint_weight, layout, g);
  const int64_t height = weight.size(2), width = weight.size(3);
  if (how == Adjoint::subpixel) {
    EXML_CHECK_VALUE(g.is_cpu(), "frozen_conv2d: adjoint 'subpixel' is for the CPU, got a tensor on ", g.device());
    // Pixels at distance `stride` see the same taps: each such set is a channel of one convolution of stride 1.
    const int64_t s = stride[0], taps = (std::max(height, width) + s - 1) / s;
    const Tensor phases = convolve_prepared(g, *adjoint_weight, layout, weight, taps, {taps - 1, taps - 1}, {1, 1}, 1);
    EXML_CHECK_VALUE(phases.size(1) == s * s * sizes[1],
                     "frozen_conv2d: adjoint_weight must have stride^2 * C = ", s * s * sizes[1],
                     " output channels for adjoint 'subpixel', got ", phases.size(1));
    return as_contiguous(interleave_phases_cpu(phases, s, padding, sizes), format);
  }
  const std::array<int64_t, 2> flipped{dilation[0] * (height - 1) - padding[0], dilation[1] * (width - 1) - padding[1]};
  if (how == Adjoint::convolution)
    return as_contiguous(convolve_prepared(g, *adjoint_weight, layout, weight, width, flipped, dilation, groups),
                         format);
  EXML_CHECK_VALUE(layout == WeightLayout::plain || layout == WeightLayout::packed,
                   "frozen_conv2d: adjoint_layout must be 'plain' or 'packed' for adjoint 'zero_stuffed', got '",
                   adjoint_layout, "'");
  const std::array<int64_t, 2> ones{1, 1};
  if (height * width == 1 && equal(padding, {0, 0})) {
    // A kernel of one tap makes zeros of zeros: they are put between its outputs, which are fewer.
    const Tensor small = convolve(g, *adjoint_weight, std::nullopt, ones, flipped, ones, groups);
    return as_contiguous(with_zeros_between(small, stride, sizes[2], sizes[3]), format);
  }
  const Tensor wide = with_zeros_between(g, stride, sizes[2] - 2 * flipped[0] + dilation[0] * (height - 1),
                                         sizes[3] - 2 * flipped[1] + dilation[1] * (width - 1));
  return as_contiguous(convolve(wide, *adjoint_weight, std::nullopt, ones, flipped, dilation, groups), format);
}

EXML_SCHEMAS(m) {
  m.def(
      "_frozen_conv2d_forward(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, "
      "int groups, Tensor? forward_weight, str forward_layout, bool lanes) -> Tensor");
  m.def(
      "_frozen_conv2d_backward(Tensor grad, Tensor weight, int[] sizes, bool channels_last, int[2] stride, int[2] "
      "padding, int[2] dilation, int groups, Tensor? adjoint_weight, str adjoint_layout, str adjoint) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(exml, CompositeExplicitAutograd, m) {
  m.impl("_frozen_conv2d_forward", TORCH_BOX(&forward));
  m.impl("_frozen_conv2d_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace exml
