#include "dlpack.h"

#include <nanobind/ndarray.h>

#include <string>
#include <utility>

namespace nb = nanobind;
using namespace nb::literals;

namespace nixl::python {
namespace {

using Memory = nb::ndarray<>;
using ReadOnlyMemory = nb::ndarray<nb::ro>;

template <typename Array>
bool isContiguous(const Array& memory) {
  int64_t step = 1;
  for (size_t i = memory.ndim(); i-- > 0;) {
    if (memory.shape(i) != 1 && memory.stride(i) != step) return false;
    step *= static_cast<int64_t>(memory.shape(i));
  }
  return true;
}

template <typename Array>
nb::object facts(Array memory, bool read_only) {
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  const size_t bytes = memory.nbytes();
  const int kind = memory.device_type(), device = memory.device_id();
  const bool contiguous = isContiguous(memory);
  auto* held = new Array(std::move(memory));
  nb::capsule keeper(held, [](void* p) noexcept { delete static_cast<Array*>(p); });
  return nb::make_tuple(address, bytes, kind, device, contiguous, read_only, keeper);
}

// None: the capsule is of a kind that cannot be read.
nb::object read(const nb::object& capsule) {
  Memory memory;
  if (nb::try_cast(capsule, memory)) return facts(std::move(memory), false);
  ReadOnlyMemory constant;
  if (nb::try_cast(capsule, constant)) return facts(std::move(constant), true);
  return nb::none();
}

// (address, bytes, DLPack's kind of device, number of the device, is contiguous, is read-only,
// what keeps the memory alive). Raises what the exporter raises, and TypeError where it gives
// something else. Only capsules of version 1 tell that memory is read-only.
nb::object describe(nb::object exporter) {
  nb::object method = exporter.attr("__dlpack__");
  try {
    nb::object found = read(method("max_version"_a = nb::make_tuple(1, 0)));
    if (!found.is_none()) return found;
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_TypeError)) throw;  // an exporter that knows no versions
  }
  nb::object found = read(method());
  if (found.is_none())
    throw nb::type_error(("__dlpack__() of a " + std::string(Py_TYPE(exporter.ptr())->tp_name) +
                          " gave something that is no DLPack capsule, or was consumed before")
                             .c_str());
  return found;
}

}  // namespace

void addDlpack(nb::module_& m) { m.def("_dlpack_memory", &describe); }

}  // namespace nixl::python
