// inspect.cc - plugins tried out, for nixl.get_capabilities().

#include "inspect.h"

#include <chrono>
#include <string>

#include "nixl/agent.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nixl::python {
namespace {

// Texts of plugins and paths may be any bytes.
nb::object textOf(const std::string& text) {
  return nb::steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()),
                                        "surrogateescape"));
}

nb::dict dictOf(const PluginReport& report) {
  nb::list mems, found;
  for (MemType type : report.info.mems) mems.append(textOf(memTypeName(type)));
  for (const auto& [what, value] : report.found)
    found.append(nb::make_tuple(textOf(what), textOf(value)));
  nb::dict d;
  d["name"] = textOf(report.state.name);
  d["usable"] = report.state.usable;
  d["loaded"] = report.loaded;
  d["path"] = textOf(report.state.path);
  d["why_unusable"] = textOf(report.state.why_unusable);
  d["summary"] = textOf(report.info.summary);
  d["memory"] = mems;
  d["found"] = found;
  return d;
}

}  // namespace

void addInspect(nb::module_& m) {
  m.def(
      "_inspect_plugins",
      [](double seconds) {
        std::vector<PluginReport> reports;
        {
          nb::gil_scoped_release unlocked;
          reports = inspectPlugins(
              std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000)));
        }
        nb::list all;
        for (const PluginReport& report : reports) all.append(dictOf(report));
        return all;
      },
      "seconds"_a, "Tries out every plugin, each in a child process that may take so long.");
  m.def(
      "_plugin_search",
      [] {
        const PluginSearch search = pluginSearch();
        nb::list missing;
        for (const PluginState& state : search.missing)
          missing.append(nb::make_tuple(textOf(state.name), textOf(state.path)));
        return nb::make_tuple(textOf(search.folder), textOf(search.problem), missing);
      },
      "Where plugins are looked for, why that folder cannot be read, and what is missing from it.");
}

}  // namespace nixl::python
