#include "ops/jitter_flip.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/autograd/dispatcher.h"
#include "ops/checks.h"

namespace exml {
namespace {

using at::Tensor;

bool wraps(std::string_view border) {
  if (border == "wrap") return true;
  if (border == "zero") return false;
  TORCH_CHECK_VALUE(false, "jitter_flip: border must be 'wrap' or 'zero', got '", border, "'");
}

void check(const Tensor& x, const Tensor& shift, const Tensor& flip, at::ScalarType dtype,
           at::MemoryFormat memory_format) {
  check_pixels("jitter_flip", "x", x);
  TORCH_CHECK_VALUE(x.dim() == 4, "jitter_flip: x must have shape (N, C, H, W), got ", x.sizes());
  const int64_t images = x.size(0);
  TORCH_CHECK_VALUE(shift.scalar_type() == at::kLong, "jitter_flip: shift must be int64, got ", shift.scalar_type());
  TORCH_CHECK_VALUE(shift.sizes() == at::IntArrayRef({2}) || shift.sizes() == at::IntArrayRef({images, 2}),
                    "jitter_flip: shift must have shape (2,) or (N, 2) = (", images, ", 2), got ", shift.sizes());
  check_device("jitter_flip", "shift", shift, "x", x);
  TORCH_CHECK_VALUE(flip.scalar_type() == at::kBool, "jitter_flip: flip must be bool, got ", flip.scalar_type());
  TORCH_CHECK_VALUE(flip.dim() == 0 || flip.sizes() == at::IntArrayRef({images}),
                    "jitter_flip: flip must have shape () or (N,) = (", images, ",), got ", flip.sizes());
  check_device("jitter_flip", "flip", flip, "x", x);
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kDouble,
                    "jitter_flip: dtype must be float32, bfloat16 or float64, got ", dtype);
  TORCH_CHECK_VALUE(memory_format == at::MemoryFormat::Contiguous || memory_format == at::MemoryFormat::ChannelsLast,
                    "jitter_flip: memory_format must be contiguous_format or channels_last, got ", memory_format);
}

}  // namespace

JitterFlip jitter_flip_arguments(const Tensor& x, const Tensor& shift, const Tensor& flip, at::ScalarType dtype,
                                 at::MemoryFormat memory_format, std::string_view border, bool adjoint) {
  check(x, shift, flip, dtype, memory_format);
  return {x,
          shift.contiguous(),
          flip.contiguous(),
          at::empty(x.sizes(), x.options().dtype(dtype).memory_format(memory_format)),
          wraps(border),
          adjoint};
}

namespace {

using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, at::ScalarType, at::MemoryFormat,
                         std::string_view, bool);

Tensor jitter_flip(const Tensor& x, const Tensor& shift, const Tensor& flip, std::optional<at::ScalarType> dtype,
                   std::optional<at::MemoryFormat> memory_format, std::string_view border) {
  static const auto op = find_op<Signature>("exml::_jitter_flip");
  return op.call(x, shift, flip, dtype.value_or(x.scalar_type()), memory_format.value_or(at::MemoryFormat::Contiguous),
                 border, false);
}

TORCH_LIBRARY_FRAGMENT(exml, m) {
  m.def(
      "jitter_flip(Tensor x, Tensor shift, Tensor flip, ScalarType? dtype=None, MemoryFormat? memory_format=None, str "
      "border='wrap') -> Tensor");
  m.def(
      "_jitter_flip(Tensor x, Tensor shift, Tensor flip, ScalarType dtype, MemoryFormat memory_format, str border, "
      "bool adjoint) -> Tensor");
}

TORCH_LIBRARY_IMPL(exml, CompositeImplicitAutograd, m) { m.impl("jitter_flip", &jitter_flip); }

}  // namespace
}  // namespace exml
