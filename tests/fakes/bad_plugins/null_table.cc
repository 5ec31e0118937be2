// A plugin that says it cannot work with this library.
#include "nixl/plugin_abi.h"

extern "C" __attribute__((visibility("default"))) const nixl_plugin* nixl_backend_init(uint32_t) {
  return nullptr;
}
