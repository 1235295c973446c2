// Keeps the large blocks of CPU tensors for the next tensor of about that size, for as long as someone asks for it.
// glibc returns blocks of megabytes to the system when they are freed; a step of inversion frees and asks for the same
// ones again and again, and the page faults took a quarter of MobileNetV2's.
#pragma once

namespace exml {

// From the first begin to the last end PyTorch's CPU tensors are allocated this way, in all threads. At most as many
// bytes are kept as were in use at a time. Does nothing where another allocator than PyTorch's own is set, or without
// glibc.
void begin_reused_memory();
void end_reused_memory();

}  // namespace exml
