#include "reused_memory.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <cstdint>
#include <map>
#include <mutex>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace exml {
namespace {

#ifdef __GLIBC__

// Smaller blocks are glibc's business.
constexpr size_t kLeast = 64 << 10;
// A block serves for tensors of at least this share of its size.
constexpr double kShare = 0.8;
// A block that nothing asked for while so many others were found or made goes back to the system.
constexpr uint64_t kPatience = 10000;

class ReusedMemory final : public c10::Allocator {
 public:
  static ReusedMemory& instance() {
    static auto* self = new ReusedMemory;  // never destroyed: tensors may outlive everything
    return *self;
  }

  c10::DataPtr allocate(size_t size) override {
    void* p = size < kLeast ? c10::alloc_cpu(size) : take(size);
    return {p, p, &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }

  void begin() {
    const std::lock_guard lock(mutex_);
    if (users_++ > 0 || c10::GetCPUAllocator() != c10::GetDefaultCPUAllocator()) return;
    c10::SetCPUAllocator(this);
  }

  void end() {
    const std::lock_guard lock(mutex_);
    if (--users_ > 0) return;
    if (c10::GetCPUAllocator() == this) c10::SetCPUAllocator(c10::GetDefaultCPUAllocator());
    for (const auto& [_, block] : free_) c10::free_cpu(block.data);
    free_.clear();
  }

 private:
  struct Block {
    void* data;
    uint64_t freed_at;
  };

  void* take(size_t size) {
    {
      const std::lock_guard lock(mutex_);
      ++taken_;
      const auto found = free_.lower_bound(size);
      if (found != free_.end() && static_cast<double>(size) >= kShare * static_cast<double>(found->first)) {
        void* data = found->second.data;
        free_.erase(found);
        return data;
      }
      std::erase_if(free_, [this](const auto& entry) {
        const bool idle = taken_ - entry.second.freed_at > kPatience;
        if (idle) c10::free_cpu(entry.second.data);
        return idle;
      });
    }
    return c10::alloc_cpu(size);
  }

  // Any block of alloc_cpu, also one that was taken before begin().
  static void give_back(void* data) {
    auto& self = instance();
    const size_t size = data == nullptr ? 0 : malloc_usable_size(data);
    if (size >= kLeast) {
      const std::lock_guard lock(self.mutex_);
      if (self.users_ > 0) {
        self.free_.emplace(size, Block{data, self.taken_});
        return;
      }
    }
    c10::free_cpu(data);
  }

  std::mutex mutex_;
  int users_ = 0;
  uint64_t taken_ = 0;
  std::multimap<size_t, Block> free_;  // by usable size
};

#endif

}  // namespace

#ifdef __GLIBC__
void begin_reused_memory() { ReusedMemory::instance().begin(); }
void end_reused_memory() { ReusedMemory::instance().end(); }
#else
void begin_reused_memory() {}
void end_reused_memory() {}
#endif

}  // namespace exml
