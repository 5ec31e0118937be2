// A library that exports something, but not the symbol of a plugin.
extern "C" __attribute__((visibility("default"))) int nixl_backend_start() { return 0; }
