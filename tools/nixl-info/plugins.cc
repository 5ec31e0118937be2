// nixl-info plugins [NAME ...] [--details] [--json]: each backend, what it is and can do, or why it
// cannot be used here; with names or --details also its file, what it found, and its options.
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/exit_code.h"
#include "nixl-info/command.h"
#include "nixl-info/probes.h"
#include "nixl-info/terminal.h"
#include "nixl/agent.h"

namespace nixl::info {

namespace {

constexpr size_t kColumn = 26;  // where values start

std::vector<PluginReport> discover(const PluginSearch& search) {
  std::vector<PluginReport> found = inspectPlugins();
  for (const PluginState& missing : search.missing) {
    PluginReport report;
    report.state = missing;
    report.state.why_unusable =
        "there is no " + missing.path +
        (search.chosen ? "; unset NIXL_PLUGIN_DIR, or let it name the folder that has this file"
                       : "; it was built with this library: reinstall nixl");
    found.push_back(std::move(report));
  }
  std::sort(found.begin(), found.end(), [](const PluginReport& a, const PluginReport& b) {
    return a.state.name < b.state.name;
  });
  return found;
}

bool isMissing(const PluginReport& report, const PluginSearch& search) {
  return std::any_of(search.missing.begin(), search.missing.end(), [&](const PluginState& missing) {
    return missing.name == report.state.name;
  });
}

const char* stateWord(const PluginReport& report, const PluginSearch& search) {
  if (report.state.usable) return "usable";
  if (isMissing(report, search)) return "missing";
  return report.loaded ? "unusable" : "broken";
}

std::string memories(const BackendInfo& info) {
  std::string text;
  for (MemType type : info.mems)
    text += (text.empty() ? "" : ", ") + std::string(memTypeName(type));
  return text.empty() ? "-" : text;
}

std::string reach(const PluginReport& report) {
  if (!report.loaded) return "-";
  const BackendInfo& info = report.info;
  std::string text = info.local && info.remote ? "local, remote" : info.remote ? "remote" : "local";
  return info.notifications ? text + ", notifications" : text;
}

void printJson(const std::vector<PluginReport>& found, const PluginSearch& search) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const PluginReport& report : found) {
    const auto& [state, loaded, info, findings] = report;
    nlohmann::ordered_json entry = {{"name", state.name},
                                    {"usable", state.usable},
                                    {"state", stateWord(report, search)},
                                    {"path", state.path}};
    if (!state.usable) entry["why_unusable"] = state.why_unusable;
    if (loaded) {
      std::vector<std::string> mems;
      for (MemType type : info.mems) mems.emplace_back(memTypeName(type));
      nlohmann::ordered_json options = nlohmann::ordered_json::array();
      for (const auto& [name, value] : info.params) {
        const auto help = info.help.find(name);
        options.push_back({{"name", name},
                           {"default", value},
                           {"help", help == info.help.end() ? "" : help->second}});
      }
      nlohmann::ordered_json facts = nlohmann::ordered_json::array();
      for (const auto& [what, value] : findings)
        facts.push_back({{"what", what}, {"value", shownValue(what, value)}});
      entry.update({{"version", info.version},
                    {"summary", info.summary},
                    {"memory", mems},
                    {"local", info.local},
                    {"remote", info.remote},
                    {"notifications", info.notifications},
                    {"options", options},
                    {"found", facts}});
    }
    all.push_back(std::move(entry));
  }
  std::cout << all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
}

void printDetails(const Terminal& terminal, const PluginReport& report,
                  const PluginSearch& search) {
  const auto& [state, loaded, info, findings] = report;
  terminal.title(state.name + (info.version.empty() ? "" : " " + info.version));
  terminal.pair(stateWord(report, search), state.usable ? info.summary : state.why_unusable,
                kColumn, state.usable ? Colour::NONE : Colour::BAD);
  if (!state.usable && loaded) terminal.pair("what it is", info.summary, kColumn);
  terminal.pair("file", state.path.empty() ? "linked into the library" : state.path, kColumn);
  if (loaded) {
    terminal.pair("memory", memories(info), kColumn);
    terminal.pair("reach", reach(report), kColumn);
  }
  for (const auto& [what, value] : findings) terminal.pair(what, shownValue(what, value), kColumn);
  if (!info.params.empty()) {
    std::cout << "  options\n";
    for (const auto& [name, value] : info.params) {
      const auto help = info.help.find(name);
      terminal.pair("  " + name,
                    (help == info.help.end() ? "" : help->second) +
                        (value.empty() ? "" : " [" + value + "]"),
                    kColumn + 4);
    }
  }
  std::cout << '\n';
}

void printTable(const Terminal& terminal, const std::vector<PluginReport>& found,
                const PluginSearch& search) {
  std::vector<std::vector<std::string>> rows = {
      {"NAME", "USABLE", "MEMORY", "REACH", "WHAT IT IS"}};
  for (const PluginReport& report : found)
    rows.push_back({report.state.name, report.state.usable ? "yes" : "no", memories(report.info),
                    reach(report),
                    report.loaded ? report.info.summary : stateWord(report, search)});
  terminal.table(rows);
  for (const PluginReport& report : found)
    if (!report.state.usable) {
      std::cout << '\n';
      terminal.paragraph(report.state.name + " cannot be used:", 0, Colour::BAD);
      terminal.paragraph(report.state.why_unusable, 2);
    }
  std::cout << '\n';
  if (!search.problem.empty())
    terminal.paragraph("Plugins are looked for in " + search.problem, 0, Colour::BAD);
  else
    terminal.paragraph("Plugins are looked for in " + search.folder +
                           (search.chosen ? " (NIXL_PLUGIN_DIR)." : "."),
                       0);
  terminal.paragraph("`nixl-info plugins NAME` lists what a plugin found, and its options.", 0);
}

}  // namespace

int listPlugins(const Args& args) {
  const PluginSearch search = pluginSearch();
  std::vector<PluginReport> found = discover(search);
  if (!args.names.empty()) {
    std::vector<PluginReport> chosen;
    std::vector<std::string> known;
    for (const PluginReport& report : found) known.push_back(report.state.name);
    for (const std::string& name : args.names) {
      std::string upper = name;
      std::transform(upper.begin(), upper.end(), upper.begin(),
                     [](unsigned char c) { return std::toupper(c); });
      const auto report = std::find(known.begin(), known.end(), upper);
      if (report == known.end()) {
        std::string all;
        for (const std::string& other : known) all += (all.empty() ? "" : ", ") + other;
        throw Error(Errc::NOT_FOUND, "there is no plugin \"" + name + "\"; found " +
                                         (all.empty() ? "none" : all) + " in " + search.folder);
      }
      chosen.push_back(found[static_cast<size_t>(report - known.begin())]);
    }
    found = std::move(chosen);
  }
  const Terminal terminal;
  if (args.json)
    printJson(found, search);
  else if (args.details || !args.names.empty())
    for (const PluginReport& report : found) printDetails(terminal, report, search);
  else
    printTable(terminal, found, search);
  if (found.empty())
    throw Error(Errc::NOT_FOUND, "no plugin found; set NIXL_PLUGIN_DIR or install nixl");
  return tools::kDone;
}

}  // namespace nixl::info
