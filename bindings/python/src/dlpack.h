// dlpack.h - memory of objects that speak DLPack: tensors and arrays of any library.
#pragma once

#include <nanobind/nanobind.h>

namespace nixl::python {

void addDlpack(nanobind::module_& m);

}  // namespace nixl::python
