// Memory of a thread that calls share; they would map and clear it anew each time.
#pragma once

#include <cstdint>
#include <vector>

namespace exml {

// At least `size` values, of any value; those of another purpose or type lie elsewhere.
template <typename A, int kPurpose>
A* scratch(int64_t size) {
  thread_local std::vector<A> memory;
  if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
  return memory.data();
}

}  // namespace exml
