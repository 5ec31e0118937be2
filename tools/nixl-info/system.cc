// nixl-info system [--json]: the machine and what is installed on it, for reports of bugs.
// nixl-info check [--json]: the same, but only what should be done something about.
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "common/exit_code.h"
#include "nixl-info/command.h"
#include "nixl-info/probes.h"
#include "nixl-info/terminal.h"
#include "nixl/agent.h"

namespace nixl::info {

namespace {

constexpr auto kLimit = std::chrono::seconds(15);  // for each subject; all are asked at once
constexpr size_t kColumn = 30;                     // where values start

std::vector<Gathered> look(const Args& args) {
  Machine machine;
  machine.files = Files(args.root);
  machine.saved = !args.root.empty();
  machine.python = args.python;
  if (!machine.saved) {
    // Plugins add what they read to the table of variables; only such as load without harm.
    machine.plugins = inspectPlugins();
    for (const PluginReport& report : machine.plugins)
      if (report.loaded) (void)pluginInfo(report.state.name);
  }
  return gather(allProbes(machine), kLimit);
}

struct Hint {
  std::string section;
  Fact fact;
};

std::vector<Hint> hintsOf(const std::vector<Gathered>& sections) {
  std::vector<Hint> hints;
  for (const Gathered& section : sections)
    for (const Fact& fact : section.facts)
      if (!fact.hint.empty()) hints.push_back({section.name, fact});
  std::stable_sort(hints.begin(), hints.end(),
                   [](const Hint& a, const Hint& b) { return a.fact.wrong > b.fact.wrong; });
  return hints;
}

nlohmann::ordered_json toJson(const std::vector<Hint>& hints) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const Hint& hint : hints)
    all.push_back({{"section", hint.section},
                   {"name", hint.fact.name},
                   {"value", hint.fact.value},
                   {"hint", hint.fact.hint},
                   {"wrong", hint.fact.wrong}});
  return all;
}

void print(const Terminal& terminal, const std::vector<Hint>& hints) {
  for (const Hint& hint : hints) {
    terminal.paragraph(hint.section + ", " + hint.fact.name + ": " + hint.fact.value, 2,
                       hint.fact.wrong ? Colour::BAD : Colour::HINT);
    terminal.paragraph(hint.fact.hint, 6);
  }
}

}  // namespace

int showSystem(const Args& args) {
  const std::vector<Gathered> sections = look(args);
  if (args.json) {
    std::cout << toJson(sections).dump(2, ' ', false, nlohmann::json::error_handler_t::replace)
              << '\n';
    return tools::kDone;
  }
  const Terminal terminal;
  for (const Gathered& section : sections) {
    terminal.title(section.name);
    for (const Fact& fact : section.facts) {
      terminal.pair(fact.name, fact.value, kColumn, fact.wrong ? Colour::BAD : Colour::NONE);
      if (!fact.hint.empty()) terminal.pair("", "-> " + fact.hint, kColumn, Colour::HINT);
    }
    std::cout << '\n';
  }
  return tools::kDone;
}

int check(const Args& args) {
  const std::vector<Gathered> sections = look(args);
  const std::vector<Hint> hints = hintsOf(sections);
  const bool wrong = !hints.empty() && hints.front().fact.wrong;
  std::vector<std::string> usable;
  for (const Gathered& section : sections)
    if (section.name == "plugins")
      for (const Fact& fact : section.facts)
        if (fact.value == "usable") usable.push_back(fact.name);

  if (args.json) {
    nlohmann::ordered_json all = {
        {"version", versionText()}, {"usable", usable}, {"hints", toJson(hints)}};
    std::cout << all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
    return wrong ? tools::kFailed : tools::kDone;
  }
  const Terminal terminal;
  terminal.title(std::string("nixl ") + versionText());
  std::string names;
  for (const std::string& name : usable) names += (names.empty() ? "" : ", ") + name;
  if (args.root.empty()) {
    terminal.pair("usable backends", names.empty() ? "none" : names, 20,
                  names.empty() ? Colour::BAD : Colour::GOOD);
    std::cout << '\n';
  }
  const auto worth = static_cast<size_t>(
      std::count_if(hints.begin(), hints.end(), [](const Hint& hint) { return hint.fact.wrong; }));
  const auto middle = hints.begin() + static_cast<std::ptrdiff_t>(worth);
  if (worth > 0) {
    terminal.title("To be mended");
    print(terminal, {hints.begin(), middle});
  }
  if (middle != hints.end()) {
    if (worth > 0) std::cout << '\n';
    terminal.title("Worth knowing");
    print(terminal, {middle, hints.end()});
  }
  if (hints.empty()) std::cout << "Nothing to mend was found.\n";
  return wrong ? tools::kFailed : tools::kDone;
}

}  // namespace nixl::info
