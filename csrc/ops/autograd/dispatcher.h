// Calls an op of this library through the dispatcher, so that tracing sees it: the handle is looked up once.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace exml {

template <typename Signature>
auto find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace exml
