// A plugin whose table ends before create().
#include <cstddef>

#include "nixl/plugin_abi.h"

extern "C" __attribute__((visibility("default"))) const nixl_plugin* nixl_backend_init(uint32_t) {
  static const nixl_plugin plugin = [] {
    nixl_plugin p{};
    p.struct_size = offsetof(nixl_plugin, summary);
    p.abi_version = NIXL_PLUGIN_ABI_VERSION;
    p.name = "SHORTTABLE";
    return p;
  }();
  return &plugin;
}
