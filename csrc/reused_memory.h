// Keeps the memory of freed CPU tensors for the next tensors, between begin and end. The C library returns blocks of
// megabytes to the system when they are freed, or keeps them in pieces that no other tensor fits in. A step of
// inversion frees and allocates the same tensors again and again, and the page faults took a quarter of a step of
// MobileNetV2.
#pragma once

namespace exml {

// From the first begin to the last end, PyTorch's CPU tensors of at least 64 KiB lie side by side in one range of
// addresses, in all threads. The range grows to what was in use at one time, and the last end gives its free memory
// back. These functions do nothing if a different allocator than PyTorch's own is set, or on another system than Linux.
void begin_reused_memory();
void end_reused_memory();

}  // namespace exml
