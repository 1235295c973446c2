// Where a shifted and mirrored line of pixels comes from (Yin 2020, B.1; Carta 2022, 4.1).
#pragma once

#include "math/platform.h"

namespace exml {

// A row or column index of an image. The line is shifted first and then mirrored; its adjoint undoes both.
struct ShiftedLine {
  int64_t size, shift;
  bool wrap, mirrored, adjoint;

  // shift: any number of pixels towards the end. wrap: pixels that leave at one end enter at the other; otherwise zeros
  // enter.
  EXML_HD ShiftedLine(int64_t size, int64_t shift, bool mirrored, bool wrap, bool adjoint)
      : size(size), wrap(wrap), mirrored(mirrored), adjoint(adjoint) {
    if (wrap) {
      shift %= size;
      if (shift < 0) shift += size;
      this->shift = adjoint && shift > 0 ? size - shift : shift;
    } else {
      shift = shift > size ? size : shift < -size ? -size : shift;
      this->shift = adjoint ? -shift : shift;
    }
  }

  // The pixel that moves to place i, or -1 for a zero.
  EXML_HD int64_t source(int64_t i) const {
    if (mirrored && !adjoint) i = size - 1 - i;
    i -= shift;
    if (wrap && i < 0) i += size;
    if (i < 0 || i >= size) return -1;
    return mirrored && adjoint ? size - 1 - i : i;
  }
};

}  // namespace exml
