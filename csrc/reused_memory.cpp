#include "reused_memory.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>

#ifdef __GLIBC__
#include <malloc.h>
#include <pthread.h>
#endif

namespace exml {
namespace {

#ifdef __GLIBC__

// Smaller blocks are left to glibc.
constexpr size_t kLeast = 64 << 10;
// A block is reused for tensors of at least this share of its size.
constexpr double kShare = 0.8;

class ReusedMemory final : public c10::Allocator {
 public:
  static ReusedMemory& instance() {
    static auto* self = new ReusedMemory;  // never destroyed, because tensors may outlive static objects
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
    keep_at_most(0);
    used_ = most_used_ = 0;
  }

 private:
  struct Block {
    void* data;
    uint64_t freed_at;
  };

  ReusedMemory() {
    // A child process has one thread, and has not called begin().
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] {
                     auto& self = instance();
                     self.users_ = 0;
                     if (c10::GetCPUAllocator() == &self) c10::SetCPUAllocator(c10::GetDefaultCPUAllocator());
                     self.mutex_.unlock();
                   });
  }

  void* take(size_t size) {
    {
      const std::lock_guard lock(mutex_);
      const auto found = free_.lower_bound(size);
      if (found != free_.end() && static_cast<double>(size) >= kShare * static_cast<double>(found->first)) {
        void* data = found->second.data;
        count(found->first);
        kept_ -= found->first;
        free_.erase(found);
        return data;
      }
    }
    void* data = c10::alloc_cpu(size);
    const std::lock_guard lock(mutex_);
    count(malloc_usable_size(data));
    return data;
  }

  // Any block of alloc_cpu, also one that was taken before begin().
  static void give_back(void* data) {
    auto& self = instance();
    const size_t size = data == nullptr ? 0 : malloc_usable_size(data);
    if (size >= kLeast) {
      const std::lock_guard lock(self.mutex_);
      if (self.users_ > 0) {
        self.used_ -= std::min(self.used_, size);
        self.kept_ += size;
        self.free_.emplace(size, Block{data, ++self.time_});
        self.keep_at_most(self.most_used_);
        return;
      }
    }
    c10::free_cpu(data);
  }

  void count(size_t size) {
    used_ += size;
    most_used_ = std::max(most_used_, used_);
  }

  // Gives the blocks that have been free for the longest time back to the system.
  void keep_at_most(size_t bytes) {
    while (kept_ > bytes) {
      const auto oldest = std::min_element(free_.begin(), free_.end(), [](const auto& a, const auto& b) {
        return a.second.freed_at < b.second.freed_at;
      });
      kept_ -= oldest->first;
      c10::free_cpu(oldest->second.data);
      free_.erase(oldest);
    }
  }

  std::mutex mutex_;
  int users_ = 0;
  uint64_t time_ = 0;
  // Bytes of the blocks in use that were taken here, their maximum, and bytes of the free ones.
  size_t used_ = 0, most_used_ = 0, kept_ = 0;
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
