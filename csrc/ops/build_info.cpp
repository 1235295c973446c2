// How the library was built, for exml_fast/_native.py.
#include "ops/cpu/capability.h"

#if defined(__clang__)
constexpr const char* kCompiler = __VERSION__;
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif

extern "C" {

[[gnu::visibility("default")]] const char* exml_compiler() { return kCompiler; }
[[gnu::visibility("default")]] const char* exml_cpu_capability() { return exml::cpu::capability_name(); }

}  // extern "C"
