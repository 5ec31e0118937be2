// UCX through the cases that every backend has to pass.

#include "conformance/conformance.h"

namespace {

const bool registered = [] {
  nixl::conformance::registerBackendConformance({
      .name = "UCX",
      .remote_agents = true,
      .fenced = false,  // over tcp and cma the passive side cannot refuse
  });
  return true;
}();

}  // namespace
