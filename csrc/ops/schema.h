// Registers the schemas of ops.
#pragma once

#include <torch/csrc/stable/library.h>

// As STABLE_TORCH_LIBRARY_FRAGMENT. The library of CUDA kernels holds the checks of the ops too, and registers nothing
// here, because a schema may be registered once.
#ifdef EXML_CUDA_LIBRARY
#define EXML_SCHEMAS(m) [[maybe_unused]] static void schemas(torch::stable::detail::StableLibrary& m)
#else
#define EXML_SCHEMAS(m) STABLE_TORCH_LIBRARY_FRAGMENT(exml, m)
#endif
