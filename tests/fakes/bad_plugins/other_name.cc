// A plugin in a file of another name.
#include "nixl/plugin_abi.h"

extern "C" __attribute__((visibility("default"))) const nixl_plugin* nixl_backend_init(uint32_t) {
  static const nixl_plugin plugin = [] {
    nixl_plugin p{};
    p.struct_size = sizeof p;
    p.abi_version = NIXL_PLUGIN_ABI_VERSION;
    p.name = "SOMETHINGELSE";
    p.create = [](const nixl_engine_args*, void**, const nixl_engine_ops**, nixl_error*) {
      return -3;
    };
    return p;
  }();
  return &plugin;
}
