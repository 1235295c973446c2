#include "emulator/cuda_emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define EXML_ASAN 1
#else
#define EXML_ASAN 0
#endif

extern "C" {
extern char __start_exml_shared[] __attribute__((weak));
extern char __stop_exml_shared[] __attribute__((weak));
}

namespace exml::emulator {
namespace {

constexpr size_t kStack = EXML_ASAN ? 256 << 10 : 64 << 10;
constexpr unsigned kWarp = 32;

enum class State { ready, at_barrier, in_warp, done };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  dim3 index;
  State state = State::ready;
  std::source_location where;
  unsigned mask = 0;
  uint64_t
      slots[2];  // its values in the last two warp operations, because a lane can be one operation ahead of another
  unsigned operations = 0;
};

std::vector<Thread> threads;
Thread* current = nullptr;
ucontext_t scheduler;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_size = 0;
const std::function<void()>* body = nullptr;

// ASan keeps a shadow for each stack and must be told of every switch.
void before_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* stack, [[maybe_unused]] size_t size) {
#if EXML_ASAN
  __sanitizer_start_switch_fiber(save, stack, size);
#endif
}
void after_switch([[maybe_unused]] void* saved, [[maybe_unused]] bool note_scheduler) {
#if EXML_ASAN
  __sanitizer_finish_switch_fiber(saved, note_scheduler ? &scheduler_stack : nullptr,
                                  note_scheduler ? &scheduler_stack_size : nullptr);
#endif
}

void thread_main() {
  after_switch(nullptr, true);
  (*body)();
  current->state = State::done;
  before_switch(nullptr, scheduler_stack, scheduler_stack_size);
  setcontext(&scheduler);
}

void resume(Thread& thread) {
  current = &thread;
  threadIdx = thread.index;
  before_switch(&scheduler_fake_stack, thread.stack.get(), kStack);
  swapcontext(&scheduler, &thread.context);
  after_switch(scheduler_fake_stack, false);
}

void wait(State state, const std::source_location& where) {
  Thread& me = *current;
  me.state = state;
  me.where = where;
  before_switch(&me.fake_stack, scheduler_stack, scheduler_stack_size);
  swapcontext(&me.context, &scheduler);
  after_switch(me.fake_stack, true);
}

__attribute__((no_sanitize("address"))) void poison_shared_memory() {
  for (volatile char* p = __start_exml_shared; p < __stop_exml_shared;) {
    if (reinterpret_cast<uintptr_t>(p) % 8 == 0 && __stop_exml_shared - p >= 8) {
      *reinterpret_cast<volatile uint64_t*>(p) = ~uint64_t(0);
      p += 8;
    } else {
      *p++ = char(-1);
    }
  }
}

std::string line(const Thread& t) { return std::to_string(t.where.line()); }

[[noreturn]] void fail(const std::string& what) {
  const std::string place = "block " + std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y) + ": ";
  threads.clear();  // a failed kernel leaves stacks that cannot be resumed
  throw EmulatorError(place + what);
}

void release_warps() {
  for (size_t first = 0; first < threads.size(); first += kWarp) {
    const size_t lanes = std::min<size_t>(kWarp, threads.size() - first);
    unsigned waiting = 0;
    const Thread* one = nullptr;
    for (size_t i = 0; i < lanes; ++i) {
      const Thread& t = threads[first + i];
      if (t.state != State::in_warp) continue;
      waiting |= 1u << i;
      if (one && (one->where.line() != t.where.line() || one->mask != t.mask))
        fail("lanes of a warp meet in different operations, lines " + line(*one) + " and " + line(t));
      one = &t;
    }
    if (one == nullptr || (one->mask & ~waiting) != 0) continue;
    if (waiting & ~one->mask) fail("a lane calls a warp operation without being in its mask, line " + line(*one));
    for (size_t i = 0; i < lanes; ++i)
      if (waiting >> i & 1) threads[first + i].state = State::ready;
  }
}

// Resumes all threads that can go on, or raises the reason why none can.
void release_block() {
  const auto count = [](State state) {
    return std::count_if(threads.begin(), threads.end(), [&](const Thread& t) { return t.state == state; });
  };
  const auto done = count(State::done), at_barrier = count(State::at_barrier), in_warp = count(State::in_warp);
  if (in_warp > 0) {
    const auto& t = *std::find_if(threads.begin(), threads.end(), [](auto& t) { return t.state == State::in_warp; });
    fail("lanes missing from the warp operation at line " + line(t));
  }
  if (at_barrier == 0) return;
  const auto& first =
      *std::find_if(threads.begin(), threads.end(), [](auto& t) { return t.state == State::at_barrier; });
  if (done > 0) fail("threads ended while others wait at the barrier at line " + line(first));
  for (Thread& t : threads) {
    if (t.where.line() != first.where.line())
      fail("threads wait at different barriers, lines " + line(first) + " and " + line(t));
    t.state = State::ready;
  }
}

void run_block(const std::vector<unsigned>& order) {
  poison_shared_memory();
  for (size_t t = 0; t < threads.size(); ++t) {
    Thread& thread = threads[t];
    const unsigned i = static_cast<unsigned>(t);
    thread.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y);
    thread.state = State::ready;
    thread.operations = 0;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, thread_main, 0);
  }
  for (;;) {
    bool all_done = true;
    for (const unsigned t : order) {
      if (threads[t].state == State::ready) resume(threads[t]);
      all_done = all_done && threads[t].state == State::done;
    }
    if (all_done) return;
    release_warps();
    if (std::none_of(threads.begin(), threads.end(), [](const Thread& t) { return t.state == State::ready; }))
      release_block();
  }
}

}  // namespace

int lane() { return static_cast<int>((current - threads.data()) % kWarp); }

void block_barrier(const std::source_location& where) { wait(State::at_barrier, where); }

void exchange(unsigned mask, const void* mine, void* theirs, size_t size, int source_lane,
              const std::source_location& where) {
  Thread& me = *current;
  const unsigned slot = me.operations++ % 2;
  if (size > 0) memcpy(&me.slots[slot], mine, size);
  me.mask = mask;
  wait(State::in_warp, where);
  if (size > 0) memcpy(theirs, &(&me - lane() + source_lane)->slots[slot], size);
}

void run(dim3 grid, dim3 block, const std::function<void()>& kernel) {
  ++launches;
  gridDim = grid;
  blockDim = block;
  body = &kernel;
  const size_t size = size_t(block.x) * block.y * block.z;
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (size == 0 || size > 1024 || blocks == 0 || grid.y > 65535 || grid.z > 65535)
    throw EmulatorError("invalid launch configuration");
  if (threads.size() != size) {
    threads = std::vector<Thread>(size);
    for (Thread& t : threads) t.stack.reset(new char[kStack]);
  }
  std::mt19937_64 random(order_seed);
  std::vector<unsigned> order(size), block_order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::iota(block_order.begin(), block_order.end(), 0u);
  std::shuffle(block_order.begin(), block_order.end(), random);
  for (const unsigned b : block_order) {
    std::shuffle(order.begin(), order.end(), random);
    blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
    run_block(order);
  }
}

}  // namespace exml::emulator
