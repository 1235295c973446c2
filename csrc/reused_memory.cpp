#include "reused_memory.h"

#include <c10/core/CPUAllocator.h>

#ifdef __linux__
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#endif

namespace exml {
namespace {

#ifdef __linux__

// Smaller blocks are left to the C library.
constexpr size_t kLeast = 64 << 10;
// Pieces begin at pages, so that a free piece can be given back to the system.
constexpr size_t kPage = 4096;

// A range of addresses as large as the machine's memory. The system provides memory only where a piece has been used.
// A piece is cut from the smallest free piece that holds it, and is joined with its free neighbours when it is freed.
class Region {
 public:
  // False if the system does not reserve such a range.
  bool reserve() {
    if (end_ != 0) return true;
    const size_t size = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* start = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return false;
    madvise(start, size, MADV_HUGEPAGE);
    start_ = reinterpret_cast<uintptr_t>(start);
    end_ = start_ + size;
    add(start_, size);
    return true;
  }

  bool holds(const void* data) const {
    const auto at = reinterpret_cast<uintptr_t>(data);
    return start_ <= at && at < end_;
  }

  // Null if no free piece is large enough.
  void* take(size_t size) {
    size = (size + kPage - 1) / kPage * kPage;
    const auto found = by_size_.lower_bound({size, 0});
    if (found == by_size_.end()) return nullptr;
    const auto [whole, at] = *found;
    remove(free_.find(at));
    if (whole > size) add(at + size, whole - size);
    used_.emplace(at, size);
    return reinterpret_cast<void*>(at);
  }

  void give_back(void* data) {
    const auto found = used_.find(reinterpret_cast<uintptr_t>(data));
    auto at = found->first;
    auto size = found->second;
    used_.erase(found);
    if (const auto next = free_.find(at + size); next != free_.end()) {
      size += next->second;
      remove(next);
    }
    if (const auto next = free_.lower_bound(at); next != free_.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == at) {
        at = before->first;
        size += before->second;
        remove(before);
      }
    }
    add(at, size);
  }

  // Gives the memory of the free pieces back to the system.
  void shrink() {
    for (const auto& [at, size] : free_) madvise(reinterpret_cast<void*>(at), size, MADV_DONTNEED);
  }

 private:
  using Pieces = std::map<uintptr_t, size_t>;

  void add(uintptr_t at, size_t size) {
    free_.emplace(at, size);
    by_size_.emplace(size, at);
  }

  void remove(Pieces::iterator piece) {
    by_size_.erase({piece->second, piece->first});
    free_.erase(piece);
  }

  uintptr_t start_ = 0, end_ = 0;
  Pieces free_, used_;
  std::set<std::pair<size_t, uintptr_t>> by_size_;  // the free pieces
};

// Stays PyTorch's allocator after the first begin(): oneDNN's blocks may outlive end(), and the allocator of that time
// frees them.
class ReusedMemory final : public c10::Allocator {
 public:
  static ReusedMemory& instance() {
    static auto* self = new ReusedMemory;  // never destroyed, because tensors may outlive static objects
    return *self;
  }

  c10::DataPtr allocate(size_t size) override {
    if (size >= kLeast && users_ > 0) {
      const std::lock_guard lock(mutex_);
      if (void* data = region_.take(size)) return {data, data, &give_back, c10::Device(c10::DeviceType::CPU)};
    }
    return c10::GetDefaultCPUAllocator()->allocate(size);
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }

  void begin() {
    const std::lock_guard lock(mutex_);
    if (c10::GetCPUAllocator() == c10::GetDefaultCPUAllocator() && region_.reserve()) c10::SetCPUAllocator(this);
    ++users_;
  }

  void end() {
    const std::lock_guard lock(mutex_);
    if (--users_ == 0) region_.shrink();
  }

 private:
  ReusedMemory() {
    // A child process has one thread, and has not called begin().
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] {
                     auto& self = instance();
                     self.users_ = 0;
                     self.mutex_.unlock();
                   });
  }

  // Any block of this allocator or of the default one.
  static void give_back(void* data) {
    auto& self = instance();
    {
      const std::lock_guard lock(self.mutex_);
      if (self.region_.holds(data)) {
        self.region_.give_back(data);
        if (self.users_ == 0) self.region_.shrink();
        return;
      }
    }
    c10::GetDefaultCPUAllocator()->raw_deleter()(data);
  }

  std::mutex mutex_;
  std::atomic<int> users_ = 0;
  Region region_;
};

#endif

}  // namespace

#ifdef __linux__
void begin_reused_memory() { ReusedMemory::instance().begin(); }
void end_reused_memory() { ReusedMemory::instance().end(); }
#else
void begin_reused_memory() {}
void end_reused_memory() {}
#endif

}  // namespace exml
