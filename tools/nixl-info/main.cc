// nixl-info: says what this installation of NIXL can do, and what it lacks. Its commands are in
// the table below, one file each.
#include <CLI/CLI.hpp>
#include <exception>
#include <iostream>

#include "common/early_end.h"
#include "common/exit_code.h"
#include "nixl-info/command.h"
#include "nixl/agent.h"

namespace {

using namespace nixl::info;

constexpr Command kCommands[] = {
    {"plugins", "list backends and whether each can run here", listPlugins},
};

}  // namespace

int main(int argc, char** argv) {
  using namespace nixl;
  CLI::App app("Says what this installation of NIXL can do, and what it lacks.", "nixl-info");
  app.set_version_flag("--version", std::string("nixl-info ") + versionText());
  app.require_subcommand(1);
  Args args;
  const Command* chosen = nullptr;
  for (const Command& command : kCommands) {
    CLI::App* sub = app.add_subcommand(command.name, command.help);
    sub->add_flag("--json", args.json, "for programs");
    sub->callback([&chosen, &command] { chosen = &command; });
  }

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return tools::finish(tools::earlyEnd(app, e));
  }
  try {
    chosen->run(args);
  } catch (const std::exception& e) {
    std::cout.flush();
    std::cerr << "nixl-info: " << chosen->name << ": " << e.what() << '\n';
    return tools::kFailed;
  }
  return tools::kDone;
}
