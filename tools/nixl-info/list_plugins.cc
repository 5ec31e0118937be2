// nixl-info plugins [--json]: each backend found, and why one cannot be used here.
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "nixl-info/command.h"
#include "nixl/agent.h"

namespace nixl::info {

namespace {

struct Found {
  PluginState state;
  BackendInfo info;  // empty when it is not usable
};

std::vector<Found> discover() {
  std::vector<Found> found;
  for (PluginState& state : pluginStates()) {
    Found entry{std::move(state), {}};
    if (entry.state.usable) entry.info = pluginInfo(entry.state.name);
    found.push_back(std::move(entry));
  }
  return found;
}

std::string memories(const BackendInfo& info) {
  std::string text;
  for (MemType type : info.mems)
    text += (text.empty() ? "" : ", ") + std::string(memTypeName(type));
  return text;
}

std::string reach(const BackendInfo& info) {
  std::string text = info.local && info.remote ? "local, remote" : info.remote ? "remote" : "local";
  return info.notifications ? text + ", notifications" : text;
}

void printJson(const std::vector<Found>& found) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const auto& [state, info] : found) {
    nlohmann::ordered_json entry = {
        {"name", state.name}, {"usable", state.usable}, {"path", state.path}};
    if (state.usable) {
      std::vector<std::string> mems;
      for (MemType type : info.mems) mems.emplace_back(memTypeName(type));
      entry.update({{"version", info.version},
                    {"summary", info.summary},
                    {"memory", mems},
                    {"local", info.local},
                    {"remote", info.remote},
                    {"notifications", info.notifications}});
    } else {
      entry["why_unusable"] = state.why_unusable;
    }
    all.push_back(std::move(entry));
  }
  std::cout << all.dump(2) << '\n';
}

// Columns as wide as what is in them; the last one is not padded.
void printTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      std::cout << row[i];
      if (i + 1 < row.size()) std::cout << std::string(widths[i] - row[i].size() + 2, ' ');
    }
    std::cout << '\n';
  }
}

void printTable(const std::vector<Found>& found) {
  std::vector<std::vector<std::string>> rows = {
      {"NAME", "USABLE", "MEMORY", "REACH", "WHAT IT IS"}};
  for (const auto& [state, info] : found) {
    if (state.usable)
      rows.push_back({state.name, "yes", memories(info), reach(info), info.summary});
    else
      rows.push_back({state.name, "no", "-", "-", state.why_unusable});
  }
  printTable(rows);
}

}  // namespace

void listPlugins(const Args& args) {
  const std::vector<Found> found = discover();
  args.json ? printJson(found) : printTable(found);
  if (found.empty())
    throw Error(Errc::NOT_FOUND, "no plugin found; set NIXL_PLUGIN_DIR or install nixl");
}

}  // namespace nixl::info
