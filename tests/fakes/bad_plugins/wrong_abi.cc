// A plugin of another ABI. Its table holds nothing but what tells so.
#include "nixl/plugin_abi.h"

extern "C" __attribute__((visibility("default"))) const nixl_plugin* nixl_backend_init(uint32_t) {
  static const nixl_plugin plugin = [] {
    nixl_plugin p{};
    p.struct_size = sizeof p;
    p.abi_version = 7;
    p.name = "WRONGABI";
    return p;
  }();
  return &plugin;
}
