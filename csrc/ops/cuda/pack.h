// Values that one instruction loads or stores together.
#pragma once

#include <cstdint>

#include "math/bfloat16.h"

namespace exml::cuda {

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T value[kWidth];
};

template <typename T>
constexpr int kPackWidth = 16 / sizeof(T);

// Whether runs of `length` values from p on split into whole packs.
template <typename T>
bool packs(const T* p, int64_t length) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && length % kPackWidth<T> == 0;
}

}  // namespace exml::cuda
