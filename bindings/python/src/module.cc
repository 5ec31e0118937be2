// module.cc - nixl._bindings: the library under the names that Python programs in the field use.
// nixl/_api.py is what people call; docs say so, and this stays a thin layer.

#include <nanobind/eval.h>
#include <nanobind/nanobind.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "agent.h"
#include "convert.h"
#include "dlpack.h"
#include "errors.h"
#include "inspect.h"
#include "lists.h"
#include "nixl/agent.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nixl::python {
namespace {

bool inMainInterpreter() {
#if PY_VERSION_HEX >= 0x03090000
  return PyInterpreterState_GetID(PyInterpreterState_Get()) == 0;
#else
  return PyInterpreterState_GetID(PyThreadState_Get()->interp) == 0;
#endif
}

// Plain memory, for programs and tests without arrays. Addresses are taken as they come.
void addMemory(nb::module_& m) {
  m.def(
      "malloc_passthru",
      [](size_t size) {
        constexpr size_t kAlignment = 4096;
        void* p = nullptr;
        if (posix_memalign(&p, kAlignment, size ? size : 1)) throw std::bad_alloc();
        return reinterpret_cast<uintptr_t>(p);
      },
      "size"_a, "Allocates `size` bytes, aligned to 4096, and returns their address.");
  m.def(
      "free_passthru", [](uintptr_t address) { std::free(reinterpret_cast<void*>(address)); },
      "addr"_a, "Frees what malloc_passthru() gave.");
  m.def(
      "ba_buf",
      [](uintptr_t address, size_t size) {
        std::memset(reinterpret_cast<void*>(address), 0xba, size);
      },
      "addr"_a, "size"_a, "Fills memory with the byte 0xba.");
  m.def(
      "verify_transfer",
      [](uintptr_t address1, uintptr_t address2, size_t size) {
        const auto* a = reinterpret_cast<const unsigned char*>(address1);
        const auto* b = reinterpret_cast<const unsigned char*>(address2);
        if (!std::memcmp(a, b, size)) return;
        size_t at = 0;
        while (a[at] == b[at]) ++at;
        PyErr_SetString(PyExc_AssertionError,
                        ("the two memories differ, first at byte " + std::to_string(at)).c_str());
        throw nb::python_error();
      },
      "addr1"_a, "addr2"_a, "size"_a, "Raises AssertionError unless both memories are equal.");
}

// Members are numbers and compare as such, yet print as names in every version of Python.
void printAsNames(nb::module_& m) {
  nb::object base = nb::module_::import_("enum").attr("Enum");
  nb::dict names;
  names["__builtins__"] = nb::module_::import_("builtins");
  nb::object format = nb::eval("lambda member, spec: format(str(member), spec)", names);
  for (const char* name :
       {"nixl_mem_t", "nixl_xfer_op_t", "nixl_status_t", "nixl_thread_sync_t", "nixl_cost_t"}) {
    nb::object cls = m.attr(name);
    cls.attr("__str__") = base.attr("__str__");
    cls.attr("__repr__") = base.attr("__repr__");
    cls.attr("__format__") = format;
  }
}

}  // namespace
}  // namespace nixl::python

NB_MODULE(_bindings, m) {
  using namespace nixl;
  using namespace nixl::python;
  // Classes and exceptions exist once a process, and belong to the interpreter that made them.
  if (!inMainInterpreter())
    throw nb::import_error(
        "nixl works in the main interpreter of a process only, and this is another one; use "
        "threads or processes instead");
  nb::set_leak_warnings(false);  // agents and lists may be alive when the interpreter ends

  m.attr("__version__") = versionText();
  m.attr("NIXL_INIT_AGENT") = "";
  m.attr("DEFAULT_COMM_PORT") = 8888;
  m.attr("HAVE_UCX_GPU_DEVICE_API") = false;
  nb::enum_<MemType>(m, "nixl_mem_t", nb::is_arithmetic())
      .value("DRAM_SEG", MemType::DRAM)
      .value("VRAM_SEG", MemType::VRAM)
      .value("BLK_SEG", MemType::BLOCK)
      .value("OBJ_SEG", MemType::OBJ)
      .value("FILE_SEG", MemType::FILE)
      .export_values();
  nb::enum_<OpType>(m, "nixl_xfer_op_t", nb::is_arithmetic())
      .value("NIXL_READ", OpType::READ)
      .value("NIXL_WRITE", OpType::WRITE)
      .export_values();

  addErrors(m);
  addLists(m);
  addAgent(m);
  addDlpack(m);
  addInspect(m);
  printAsNames(m);

  nb::module_ memory = m.def_submodule("_memory", "Memory without an owner.");
  addMemory(memory);

  // Agents that are alive when the interpreter ends are shut down while it still works.
  nb::module_::import_("atexit").attr("register")(m.attr("_close_all"));
}
