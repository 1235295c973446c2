// Keeps the large blocks of freed CPU tensors for the next tensor of about that size, between begin and end. glibc
// returns blocks of megabytes to the system when they are freed. A step of inversion frees and allocates the same
// blocks again and again, and the page faults took a quarter of a step of MobileNetV2.
#pragma once

namespace exml {

// From the first begin to the last end, PyTorch's CPU tensors are allocated this way in all threads. At most as many
// bytes are kept as were in use at one time. These functions do nothing if a different allocator than PyTorch's own is
// set, or without glibc.
void begin_reused_memory();
void end_reused_memory();

}  // namespace exml
