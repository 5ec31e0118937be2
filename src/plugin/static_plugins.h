// plugin/static_plugins.h - the engines that are linked into this library.
#pragma once

#include <span>

#include "nixl/plugin_abi.h"

namespace nixl::plugin {

struct StaticPlugin {
  const char* name;
  nixl_backend_init_function init;
  bool listed;  // false: can be created by name, but no list of plugins shows it
};

// The definition is made by the build, from the list in plugins/meson.build.
std::span<const StaticPlugin> staticPlugins();

// The names of the plugins that were built with this library: those linked in, and those that
// should lie in files beside it.
std::span<const char* const> builtPlugins();

}  // namespace nixl::plugin
