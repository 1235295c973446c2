// Runs a CUDA kernel, compiled as plain C++, on the host: a fibre for each thread of a block, blocks in sequence. For
// tests of logic under the sanitizers, not for speed. Static shared memory only.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define EXML_FIBRE_ASAN 1
#else
#define EXML_FIBRE_ASAN 0
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

using cudaStream_t = void*;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace exml::emulator {

// Where a thread waits, so that threads of a block (or warp) that wait at different things are noticed.
enum class Waiting { nothing, block, warp };

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 thread;
  bool finished = false;
  Waiting waiting = Waiting::nothing;
  unsigned char exchange[16];
  void* fake_stack = nullptr;
};

constexpr size_t kStack = 256 * 1024;
inline std::vector<std::unique_ptr<Fibre>> fibres;
inline ucontext_t scheduler;
inline void* scheduler_fake_stack = nullptr;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_size = 0;
inline size_t current = 0;
inline std::function<void()> body;

inline void to_scheduler(bool finished) {
  Fibre& fibre = *fibres[current];
#if EXML_FIBRE_ASAN
  __sanitizer_start_switch_fiber(finished ? nullptr : &fibre.fake_stack, scheduler_stack, scheduler_stack_size);
#endif
  (void)finished;
  swapcontext(&fibre.context, &scheduler);
#if EXML_FIBRE_ASAN
  __sanitizer_finish_switch_fiber(fibre.fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
}

inline void enter() {
#if EXML_FIBRE_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  body();
  fibres[current]->finished = true;
  to_scheduler(true);
}

inline void resume(size_t i) {
  Fibre& fibre = *fibres[i];
  current = i;
  threadIdx = fibre.thread;
#if EXML_FIBRE_ASAN
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fibre.stack.get(), kStack);
#endif
  swapcontext(&scheduler, &fibre.context);
#if EXML_FIBRE_ASAN
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

// All threads of threads [begin, end) must be at the same kind of barrier, or finished where `may_finish`.
inline void require_together(size_t begin, size_t end, Waiting at, bool may_finish) {
  for (size_t i = begin; i < end; ++i) {
    const Fibre& fibre = *fibres[i];
    if (fibre.finished ? !may_finish : fibre.waiting != at)
      throw std::logic_error("threads of a block diverge at a barrier: thread " + std::to_string(i) +
                             (fibre.finished ? " has returned" : " waits elsewhere"));
  }
}

inline void run_block(size_t threads) {
  constexpr size_t kWarpSize = 32;
  for (size_t left = threads; left > 0;) {
    left = 0;
    for (size_t i = 0; i < threads; ++i) {
      if (fibres[i]->finished || fibres[i]->waiting != Waiting::nothing) continue;
      resume(i);
    }
    bool released = false;
    for (size_t begin = 0; begin < threads; begin += kWarpSize) {  // a warp goes on when all of it waits for the warp
      const size_t end = std::min(begin + kWarpSize, threads);
      bool any = false;
      for (size_t i = begin; i < end; ++i) any |= fibres[i]->waiting == Waiting::warp;
      if (!any) continue;
      require_together(begin, end, Waiting::warp, false);
      for (size_t i = begin; i < end; ++i) fibres[i]->waiting = Waiting::nothing;
      released = true;
    }
    if (!released) {
      bool any = false;
      for (size_t i = 0; i < threads; ++i) any |= fibres[i]->waiting == Waiting::block;
      if (any) {
        require_together(0, threads, Waiting::block, false);
        for (size_t i = 0; i < threads; ++i) fibres[i]->waiting = Waiting::nothing;
      }
    }
    for (size_t i = 0; i < threads; ++i) left += !fibres[i]->finished;
  }
}

template <typename F>
void launch(dim3 grid, dim3 block, F f) {
  gridDim = grid;
  blockDim = block;
  body = f;
  const size_t threads = size_t(block.x) * block.y * block.z;
  while (fibres.size() < threads) {
    fibres.push_back(std::make_unique<Fibre>());
    fibres.back()->stack.reset(new char[kStack]);
  }
  for (size_t b = 0; b < size_t(grid.x) * grid.y * grid.z; ++b) {
    blockIdx = dim3(unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y));
    for (size_t t = 0; t < threads; ++t) {
      Fibre& fibre = *fibres[t];
      fibre.finished = false;
      fibre.waiting = Waiting::nothing;
      fibre.fake_stack = nullptr;
      fibre.thread = dim3(unsigned(t % block.x), unsigned(t / block.x % block.y), unsigned(t / block.x / block.y));
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.get();
      fibre.context.uc_stack.ss_size = kStack;
      fibre.context.uc_link = nullptr;
      makecontext(&fibre.context, reinterpret_cast<void (*)()>(&enter), 0);
    }
    run_block(threads);
  }
}

inline void wait(Waiting at) {
  fibres[current]->waiting = at;
  to_scheduler(false);
}

}  // namespace exml::emulator

inline void __syncthreads() { exml::emulator::wait(exml::emulator::Waiting::block); }
inline void __syncwarp(unsigned = 0xffffffffu) { exml::emulator::wait(exml::emulator::Waiting::warp); }

template <typename V>
V __shfl_xor_sync(unsigned, V value, int mask) {
  using namespace exml::emulator;
  static_assert(sizeof(V) <= sizeof(Fibre::exchange));
  const size_t me = current, from = me / 32 * 32 + (me % 32 ^ size_t(mask));
  std::memcpy(fibres[me]->exchange, &value, sizeof value);
  __syncwarp();
  V result;
  std::memcpy(&result, fibres[from]->exchange, sizeof result);
  __syncwarp();
  return result;
}
