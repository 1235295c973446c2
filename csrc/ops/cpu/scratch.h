// Scratch memory that each thread keeps for its next call, which saves mapping and clearing it again.
#pragma once

#include <cstdint>
#include <vector>

namespace exml {

// Memory for at least `size` values, not initialised. Each purpose and type has its own.
template <typename A, int kPurpose>
A* scratch(int64_t size) {
  thread_local std::vector<A> memory;
  if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
  return memory.data();
}

}  // namespace exml
