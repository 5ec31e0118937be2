// nixl-info config [NAME ...] [--json | --markdown]: every environment variable that is read, the
// value in force, and where it came from.
#include <algorithm>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "common/exit_code.h"
#include "nixl-info/command.h"
#include "nixl-info/probes.h"
#include "nixl-info/terminal.h"
#include "nixl/agent.h"

namespace nixl::info {

namespace {

// With those of every plugin that loads without harm.
std::vector<ConfigState> allStates() {
  for (const PluginReport& report : inspectPlugins())
    if (report.loaded) (void)pluginInfo(report.state.name);
  return configStates();
}

std::string valueText(const ConfigState& state) {
  if (state.source == "default") return state.value;
  return state.secret ? "set (hidden)" : shownValue(state.name, state.value);
}

std::string joined(const std::vector<std::string>& words, const char* between) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : between) + word;
  return text;
}

void printJson(const std::vector<ConfigState>& states) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const ConfigState& state : states) {
    nlohmann::ordered_json entry = {{"name", state.name},
                                    {"type", state.type},
                                    {"default", state.default_value},
                                    {"value", valueText(state)},
                                    {"source", state.source},
                                    {"help", state.help},
                                    {"accepted", state.accepted},
                                    {"aliases", state.aliases},
                                    {"read_by", state.owner.empty() ? "library" : state.owner}};
    if (!state.problem.empty()) entry["problem"] = state.problem;
    all.push_back(std::move(entry));
  }
  std::cout << all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
}

void printText(const std::vector<ConfigState>& states) {
  const Terminal terminal;
  size_t column = 0;
  for (const ConfigState& state : states) column = std::max(column, state.name.size() + 4);
  for (const ConfigState& state : states) {
    const bool set = state.source != "default";
    std::string value = valueText(state);
    if (value.empty()) value = "not set";
    std::string from = set ? state.source == state.name ? " (environment)"
                                                        : " (environment, " + state.source + ")"
                           : state.value.empty() ? "" : " (default)";
    terminal.pair(state.name, value + from, column,
                  !state.problem.empty() ? Colour::BAD : set ? Colour::GOOD : Colour::NONE);
    if (!state.problem.empty()) terminal.pair("", "-> " + state.problem, column, Colour::HINT);
    terminal.pair("", state.help, column);
  }
}

// In a table of Markdown, as it stands in the page of the documentation: no values in force.
std::string cell(std::string text) {
  for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2)
    text.insert(at, 1, '\\');
  return text;
}

void printRows(const std::vector<ConfigState>& states, const std::string& owner) {
  std::cout << "| variable | default | accepts | what it does |\n|---|---|---|---|\n";
  for (const ConfigState& state : states) {
    if (state.owner != owner) continue;
    std::string names = "`" + state.name + "`";
    if (!state.aliases.empty()) names += "; also `" + joined(state.aliases, "`, `") + "`";
    std::cout << "| " << cell(names) << " | "
              << (state.default_value.empty() ? "" : "`" + cell(state.default_value) + "`") << " | "
              << cell(state.accepted) << " | " << cell(state.help) << " |\n";
  }
}

void printMarkdown(const std::vector<ConfigState>& states) {
  std::cout << R"(# Environment variables

Written by `nixl-info config --markdown`: do not edit it by hand. `nixl-info config` shows the
values in force on a machine, and where each came from.

A value that cannot be understood is an error that names the variable and what it accepts, raised
by the first call that reads it, mostly when an agent is made. Options of an agent or of a backend
that a program gives win over variables.

## The library

)";
  printRows(states, "");
  std::map<std::string, bool> owners;
  for (const ConfigState& state : states)
    if (!state.owner.empty()) owners[state.owner] = true;
  for (const auto& [owner, has] : owners) {
    std::cout << "\n## The backend " << owner << "\n\n";
    printRows(states, owner);
  }
}

}  // namespace

int showConfig(const Args& args) {
  std::vector<ConfigState> states = allStates();
  std::vector<std::string> known;
  for (const ConfigState& state : states) known.push_back(state.name);
  for (const std::string& name : args.names)
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      const auto close = closeTo(name, known);
      throw Error(Errc::NOT_FOUND,
                  "nothing reads the variable " + name +
                      (close.empty() ? "; without names, all of them are listed"
                                     : "; did you mean " + close[0] + "?"));
    }
  if (!args.names.empty())
    std::erase_if(states, [&](const ConfigState& state) {
      return std::find(args.names.begin(), args.names.end(), state.name) == args.names.end();
    });
  if (args.markdown)
    printMarkdown(states);
  else if (args.json)
    printJson(states);
  else
    printText(states);
  const bool wrong = std::any_of(states.begin(), states.end(), [](const ConfigState& state) {
    return !state.problem.empty();
  });
  return wrong && !args.markdown ? tools::kFailed : tools::kDone;
}

}  // namespace nixl::info
