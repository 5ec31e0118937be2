#include "inspect.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string_view>

#include "ucp_abi.h"
#include "ucx_library.h"

namespace nixl::ucx {

namespace {

// Each word once, in the order of their first coming.
std::string listed(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) {
    bool seen = false;
    for (size_t before = 0; before < i; ++before) seen = seen || words[before] == words[i];
    if (!seen) text += (text.empty() ? "" : ", ") + words[i];
  }
  return text.empty() ? "none" : text;
}

std::string describe(const Candidate& candidate) {
  return candidate.path +
         (candidate.version == Version{} ? " (version unknown)"
                                         : " (" + candidate.version.text() + ")") +
         (candidate.rdma ? ", with a module for RDMA" : "");
}

// What a context can use, in UCX's own words; empty where it has no function to tell.
std::string contextText(const abi::Functions& ucp, abi::Context context) {
  if (ucp.context_print_info == nullptr) return {};
  char* text = nullptr;
  size_t size = 0;
  std::FILE* file = ::open_memstream(&text, &size);
  if (file == nullptr) return {};
  ucp.context_print_info(context, file);
  std::fclose(file);
  const std::string all(text, size);
  std::free(text);
  return all;
}

}  // namespace

const nixl_option kVariables[] = {
    {"NIXL_UCX_PATH", "", "the libucp.so.0 to open, its folder, or the folder that has it in lib/; "
                          "not set: a search, see plugins/ucx/README.md"},
    {"UCX_TLS", "", "transports that UCX may use, such as tcp or rc,cuda_copy; not set: all. Like "
                    "every UCX_ variable, UCX reads it itself"},
    {"UCX_NET_DEVICES", "",
     "network devices that UCX may use, such as mlx5_0:1 or eth0; not set: all"},
    {"UCX_LOG_LEVEL", "", "set: UCX writes its log itself, and not through this library"},
    {nullptr, nullptr, nullptr},
};

std::vector<Resource> resourcesIn(const std::string& text) {
  // "#      resource 1  :  md 1  dev 1  flags -- tcp/eth0"
  std::vector<Resource> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.find(" resource ") == std::string::npos) continue;
    const size_t space = line.find_last_not_of(" \r");
    if (space == std::string::npos) continue;
    line.resize(space + 1);
    const std::string last = line.substr(line.rfind(' ') + 1);
    const size_t slash = last.find('/');
    if (slash != std::string::npos)
      found.push_back({last.substr(0, slash), last.substr(slash + 1)});
  }
  return found;
}

std::string startAdvice() {
  std::string set;
  for (const char* name : {"UCX_TLS", "UCX_NET_DEVICES"})
    if (const char* value = std::getenv(name))
      set += (set.empty() ? "" : ", ") + std::string(name) + "=" + value;
  if (set.empty()) return {};
  return "; the environment has " + set +
         ": unset it, or choose among what `nixl-info plugins` lists for UCX without it";
}

void inspect(const Findings& tell) {
  const SearchPlace place = SearchPlace::ofThisProcess({});
  const bool was_open = Library::opened() != nullptr;
  const std::vector<Candidate> all = candidates(place);
  for (const Candidate& candidate : all) tell("library found", describe(candidate));
  const Library& library = was_open ? *Library::opened() : Library::open({});
  tell("library in use", library.path() + " (" + library.version().text() + ")");
  tell("built for threads", library.threadSafe() ? "yes" : "no: one lock is taken around it");
  if (place.rdma_devices)
    for (const Candidate& candidate : all)
      if (candidate.path == library.path() && !candidate.rdma)
        tell("warning",
             "this host has RDMA devices, and this library was built without support for them; the "
             "distribution's UCX, or one of your own named in NIXL_UCX_PATH, has it");
  // In a child of a process that uses it, UCX cannot be started again; there, it was before.
  if (was_open) return;

  const abi::Functions& ucp = library.ucp();
  LogCapture said;
  const auto check = [&](abi::Status status, const char* what) {
    if (status != abi::kOk)
      throw BackendFailure(
          Errc::BACKEND,
          said.explain(std::string(what) + ": " + ucp.status_string(status)) + startAdvice(),
          status);
  };
  abi::Config raw = nullptr;
  check(ucp.config_read(nullptr, nullptr, &raw), "read UCX's configuration");
  const std::unique_ptr<abi::ConfigObject, void (*)(abi::Config)> config(raw, ucp.config_release);
  abi::Params params{};
  params.field_mask = abi::kParamFeatures;
  params.features = abi::kFeatureRma | abi::kFeatureAm | abi::kFeatureWakeup;
  abi::Context context = nullptr;
  check(ucp.init_version(1, 13, &params, raw, &context), "start UCX with these settings");

  std::vector<std::string> transports, devices;
  for (const Resource& resource : resourcesIn(contextText(ucp, context))) {
    transports.push_back(resource.transport);
    if (resource.device.rfind("memory", 0) != 0) devices.push_back(resource.device);
  }
  if (!transports.empty()) {
    tell("transports", listed(transports));
    tell("devices", listed(devices));
  }
  ucp.cleanup(context);
  if (!said.text().empty()) tell("warning", "UCX says: " + said.text() + startAdvice());
}

}  // namespace nixl::ucx
