// plugins/ucx/inspect.h - what tools are told about UCX on this machine.
#pragma once

#include <string>
#include <vector>

#include "nixl/backend.h"

namespace nixl::ucx {

// Opens libucp as an engine would, starts UCX with the settings of the environment, and tells what
// it is and what it can use; throws nixl::BackendFailure where an engine could not be made. For a
// process of its own: libucp stays open in it.
void inspect(const Findings& tell);

// The environment variables that are read here, and the most used ones of UCX itself.
extern const nixl_option kVariables[];

// What to try when UCX does not start: names the settings of the environment that may be at fault;
// empty when there are none.
std::string startAdvice();

// One way to move bytes, as UCX lists it: "tcp" over "eth0".
struct Resource {
  std::string transport, device;
  bool operator==(const Resource&) const = default;
};

// Reads them from the text that UCX prints about a context.
std::vector<Resource> resourcesIn(const std::string& text);

}  // namespace nixl::ucx
