// Module init: importing this module registers the ops (static initialisers in csrc/ops) and offers build_info().
#include <pybind11/pybind11.h>

#include "ops/cpu/capability.h"
#include "reused_memory.h"

#define EXML_TEXT_(x) #x
#define EXML_TEXT(x) EXML_TEXT_(x)

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = __VERSION__;
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif

pybind11::dict build_info() {
  using namespace pybind11::literals;
#ifdef EXML_WITH_CUDA
  const pybind11::object archs = pybind11::str(EXML_TEXT(EXML_CUDA_ARCHS));
#else
  const pybind11::object archs = pybind11::none();
#endif
  return pybind11::dict("version"_a = EXML_TEXT(EXML_VERSION), "torch"_a = EXML_TEXT(EXML_TORCH_VERSION),
                        "cuda_archs"_a = archs, "compiler"_a = kCompiler,
                        "cpu_capability"_a = exml::cpu::capability_name());
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("begin_reused_memory", &exml::begin_reused_memory);
  m.def("end_reused_memory", &exml::end_reused_memory);
  m.def("build_info", &build_info, "What this extension was built from and for, and the CPU kernels it chose.");
}
