// From a loss for each row to the result.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "ops/checks.h"

namespace exml {

enum class Reduction { none, mean, sum };

inline Reduction reduction_from(const char* op, std::string_view name) {
  if (name == "none") return Reduction::none;
  if (name == "mean") return Reduction::mean;
  if (name == "sum") return Reduction::sum;
  EXML_CHECK_VALUE(false, op, ": reduction must be 'none', 'mean' or 'sum', got '", name, "'");
}

// The shape of the result.
inline std::vector<int64_t> reduced_shape(Reduction reduction, int64_t rows) {
  return reduction == Reduction::none ? std::vector<int64_t>{rows} : std::vector<int64_t>{};
}

// The factor with which a row's loss enters the result.
inline double row_share(Reduction reduction, int64_t rows) {
  return reduction == Reduction::mean ? 1 / static_cast<double>(rows) : 1;
}

}  // namespace exml
