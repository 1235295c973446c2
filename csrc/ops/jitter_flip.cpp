#include "ops/jitter_flip.h"

#include "ops/checks.h"
#include "ops/schema.h"

namespace exml {
namespace {

bool wraps(std::string_view border) {
  if (border == "wrap") return true;
  if (border == "zero") return false;
  EXML_CHECK_VALUE(false, "jitter_flip: border must be 'wrap' or 'zero', got '", border, "'");
}

void check(const Tensor& x, const Tensor& shift, const Tensor& flip, ScalarType dtype, MemoryFormat memory_format) {
  check_pixels("jitter_flip", "x", x);
  EXML_CHECK_VALUE(x.dim() == 4, "jitter_flip: x must have shape (N, C, H, W), got ", x.sizes());
  const int64_t images = x.size(0);
  EXML_CHECK_VALUE(shift.scalar_type() == ScalarType::Long, "jitter_flip: shift must be int64, got ",
                   shift.scalar_type());
  EXML_CHECK_VALUE(equal(shift.sizes(), Sizes({2})) || equal(shift.sizes(), {images, 2}),
                   "jitter_flip: shift must have shape (2,) or (N, 2) = (", images, ", 2), got ", shift.sizes());
  check_device("jitter_flip", "shift", shift, "x", x);
  EXML_CHECK_VALUE(flip.scalar_type() == ScalarType::Bool, "jitter_flip: flip must be bool, got ", flip.scalar_type());
  EXML_CHECK_VALUE(flip.dim() == 0 || equal(flip.sizes(), {images}), "jitter_flip: flip must have shape () or (N,) = (",
                   images, ",), got ", flip.sizes());
  check_device("jitter_flip", "flip", flip, "x", x);
  EXML_CHECK_VALUE(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Double,
                   "jitter_flip: dtype must be float32, bfloat16 or float64, got ", dtype);
  EXML_CHECK_VALUE(memory_format == MemoryFormat::Contiguous || memory_format == MemoryFormat::ChannelsLast,
                   "jitter_flip: memory_format must be contiguous_format or channels_last, got ", memory_format);
}

}  // namespace

JitterFlip jitter_flip_arguments(const Tensor& x, const Tensor& shift, const Tensor& flip, ScalarType dtype,
                                 MemoryFormat memory_format, std::string_view border, bool adjoint) {
  check(x, shift, flip, dtype, memory_format);
  return {x,      as_contiguous(shift), as_contiguous(flip), empty(x.sizes(), dtype, x, memory_format), wraps(border),
          adjoint};
}

EXML_SCHEMAS(m) {
  m.def(
      "_jitter_flip(Tensor x, Tensor shift, Tensor flip, ScalarType dtype, MemoryFormat memory_format, str border, "
      "bool adjoint) -> Tensor");
}

}  // namespace exml
