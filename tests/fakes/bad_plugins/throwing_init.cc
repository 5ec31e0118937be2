// A plugin that throws before it has given its table.
#include <stdexcept>

#include "nixl/plugin_abi.h"

extern "C" __attribute__((visibility("default"))) const nixl_plugin* nixl_backend_init(uint32_t) {
  throw std::runtime_error("no table today");
}
