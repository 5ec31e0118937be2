#include "options.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <filesystem>
#include <system_error>

#include "nixl/backend.h"

namespace nixl::ucx {
namespace {

[[noreturn]] void refuse(const std::string& name, const std::string& value,
                         const std::string& wanted) {
  throw BackendFailure(Errc::BACKEND,
                       "option " + name + " is \"" + value + "\"; must be " + wanted);
}

bool parseBool(const std::string& name, const std::string& value) {
  std::string word = value;
  std::transform(word.begin(), word.end(), word.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  for (const char* yes : {"y", "yes", "on", "1", "true", "enable"})
    if (word == yes) return true;
  for (const char* no : {"n", "no", "off", "0", "false", "disable"})
    if (word == no) return false;
  refuse(name, value, "true or false");
}

uint64_t parseNumber(const std::string& name, const std::string& value, uint64_t least,
                     uint64_t most) {
  const bool hex = value.size() > 2 && value[0] == '0' && (value[1] == 'x' || value[1] == 'X');
  const char* first = value.data() + (hex ? 2 : 0);
  const char* last = value.data() + value.size();
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(first, last, number, hex ? 16 : 10);
  if (error != std::errc{} || end != last || number < least || number > most)
    refuse(name, value, "a number from " + std::to_string(least) + " to " + std::to_string(most));
  return number;
}

std::vector<std::string> split(std::string_view list) {
  std::vector<std::string> words;
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    std::string_view word = list.substr(0, comma);
    list.remove_prefix(std::min(comma + 1, list.size()));
    while (!word.empty() && word.front() == ' ') word.remove_prefix(1);
    while (!word.empty() && word.back() == ' ') word.remove_suffix(1);
    if (!word.empty()) words.emplace_back(word);
  }
  return words;
}

std::vector<std::string> entriesOf(const char* dir) {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(dir, ignored))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

bool contains(const std::vector<std::string>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

std::string netDevices(std::string_view list, const std::vector<std::string>& rdma,
                       const std::vector<std::string>& net) {
  std::string devices;
  for (const std::string& word : split(list)) {
    const std::string name = word.substr(0, word.find(':'));
    std::string device;
    if (word == "all" || contains(net, word)) {
      device = word;
    } else if (contains(rdma, name)) {
      device = name == word ? word + ":1" : word;
    } else {
      std::string found;
      for (const auto* names : {&rdma, &net})
        for (const std::string& known : *names) found += (found.empty() ? "" : ", ") + known;
      throw BackendFailure(Errc::BACKEND, "option device_list names \"" + word +
                                              "\", which this host does not have (found " +
                                              (found.empty() ? "none" : found) + ")");
    }
    devices += (devices.empty() ? "" : ",") + device;
  }
  return devices;
}

Options parseOptions(const std::map<std::string, std::string>& given) {
  Options options;
  std::string split_batch_size;
  for (const auto& [name, value] : given) {
    if (name == "ucx_path") {
      options.library = value;
    } else if (name == "device_list") {
      const std::string devices =
          netDevices(value, entriesOf("/sys/class/infiniband"), entriesOf("/sys/class/net"));
      if (!devices.empty()) options.forced.push_back({"NET_DEVICES", devices});
    } else if (name == "num_workers") {
      options.workers = std::max(1u, static_cast<unsigned>(parseNumber(name, value, 0, 256)));
    } else if (name == "num_threads") {
      options.threads = static_cast<unsigned>(parseNumber(name, value, 0, 255));
    } else if (name == "split_batch_size") {
      split_batch_size = value;
    } else if (name == "ucx_error_handling_mode") {
      if (value != "peer" && value != "none") refuse(name, value, "peer or none");
      options.peer_errors = value == "peer";
    } else if (name == "ucx_num_device_channels") {
      options.device_channels = static_cast<unsigned>(parseNumber(name, value, 0, 1024));
    } else if (name == "ucx_ep_close_force") {
      options.force_close = parseBool(name, value);
    } else if (name == "engine_config") {
      for (const std::string& word : split(value))
        if (const size_t equals = word.find('='); equals != std::string::npos && equals > 0)
          options.wished.push_back({word.substr(0, equals), word.substr(equals + 1)});
    } else if (name.rfind("UCX_", 0) == 0 && name.size() > 4) {
      options.forced.push_back({name.substr(4), value});
    } else {
      options.unknown.push_back(name);
    }
  }
  // Read only where it has a meaning: programs pass anything to it otherwise.
  if (options.threads > 0) {
    options.workers = std::max(options.workers, options.threads + 1);
    if (!split_batch_size.empty())
      options.split_batch_size =
          parseNumber("split_batch_size", split_batch_size, 1, UINT32_MAX);
  }
  return options;
}

std::vector<Setting> defaultSettings(Version version, const Options& options) {
  std::vector<Setting> settings = {
      // Messages are copied whole; a rendezvous would need the receiver's registration.
      {"RNDV_THRESH", "inf"},
      {"MAX_RMA_RAILS", "2"},
      {"IB_PCI_RELAXED_ORDERING", "try"},
      {"RC_FENCE", "none"},
      // What a peer forgot of a connection it does not tell of, and what waits for an answer to it
      // waits until somebody asks: 20 s as UCX comes.
      {"KEEPALIVE_INTERVAL", "1s"},
  };
  if (version >= Version{1, 21, 0}) {
    settings.push_back({"RC_GDA_NUM_CHANNELS", std::to_string(options.device_channels)});
    settings.push_back({"MAX_HCA_PER_GPU", "auto"});
  }
  if (version >= Version{1, 22, 0}) settings.push_back({"RNDV_PIPELINE_ERROR_HANDLING", "y"});
  const std::vector<std::string> rdma = entriesOf("/sys/class/infiniband");
  if (std::any_of(rdma.begin(), rdma.end(),
                  [](const std::string& name) { return name.rfind("efa", 0) == 0 ||
                                                       name.rfind("rdmap", 0) == 0; })) {
    settings.push_back({"ADDRESS_VERSION", "v2"});
    if (version >= Version{1, 19, 0}) settings.push_back({"MAX_COMPONENT_MDS", "32"});
  }
  return settings;
}

}  // namespace nixl::ucx
