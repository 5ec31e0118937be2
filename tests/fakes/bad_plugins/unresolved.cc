// A plugin whose library is not there: it needs a symbol that nothing has.
#include "nixl/plugin_abi.h"

extern "C" int nixl_test_function_that_nobody_defines();

extern "C" __attribute__((visibility("default"))) const nixl_plugin* nixl_backend_init(uint32_t) {
  nixl_test_function_that_nobody_defines();
  return nullptr;
}
