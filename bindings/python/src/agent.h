// agent.h - nixlAgent, nixlAgentConfig and nixlXferTelemetry.
#pragma once

#include <nanobind/nanobind.h>

namespace nixl::python {

void addAgent(nanobind::module_& m);

}  // namespace nixl::python
