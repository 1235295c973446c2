// The Python module exml_fast._memory.
#include <pybind11/pybind11.h>

#include "memory/reused_memory.h"

PYBIND11_MODULE(_memory, m) {
  m.def("begin_reused_memory", &exml::begin_reused_memory);
  m.def("end_reused_memory", &exml::end_reused_memory);
}
