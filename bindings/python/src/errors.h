// errors.h - what failed calls raise in Python.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "nixl/types.h"

namespace nixl::python {

// Adds nixl_status_t, one exception class for each code, and the translation of nixl::Error.
void addErrors(nanobind::module_& m);

// The member of nixl_status_t for `code`. Cheap: no allocation, no look-up.
nanobind::object status(Errc code);

// Raises the class for `code` with the text "NIXL_ERR_...: sentence".
[[noreturn]] void raise(Errc code, const std::string& sentence);

}  // namespace nixl::python
