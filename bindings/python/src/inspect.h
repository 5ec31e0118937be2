// inspect.h - plugins tried out, for nixl.get_capabilities().
#pragma once

#include <nanobind/nanobind.h>

namespace nixl::python {

void addInspect(nanobind::module_& m);

}  // namespace nixl::python
