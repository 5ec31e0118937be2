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
    {"check", "say what should be mended on this machine, and how (the same as no command)", check},
    {"plugins", "list backends and whether each can run here", listPlugins},
    {"system", "describe this machine and what is installed, for reports of bugs", showSystem},
    {"config", "list the environment variables that are read, and the values in force", showConfig},
    {"path", "tell which backend a transfer here would take, and why not another", showPath},
};

// `--system` and `--config`, as documents about NIXL write them, are commands too.
std::vector<std::string> words(int argc, char** argv) {
  std::vector<std::string> all(argv + 1, argv + argc);
  for (std::string& word : all)
    for (const char* name : {"system", "config", "plugins", "check"})
      if (word == std::string("--") + name) {
        std::rotate(all.begin(), all.begin() + (&word - all.data()),
                    all.begin() + (&word - all.data()) + 1);
        all.front() = name;
        return all;
      }
  return all;
}

void addOptions(CLI::App& sub, const std::string& name, Args& args) {
  sub.add_flag("--json", args.json, "for programs; docs/guide/troubleshooting.md has the form");
  if (name == "system" || name == "check") {
    sub.add_option("--root", args.root,
                   "a folder with a copy of some machine's /proc, /sys, /dev and /etc to look at")
        ->check(CLI::ExistingDirectory);
    sub.add_option("--python", args.python, "the interpreter to ask for packages [python3]");
  }
  if (name == "plugins") {
    sub.add_option("name", args.names, "only these, with what they found and their options");
    sub.add_flag("--details", args.details, "the same for all of them");
  }
  if (name == "config") {
    sub.add_option("name", args.names, "only these");
    sub.add_flag("--markdown", args.markdown, "as the page of the documentation, without values");
  }
  if (name == "path") {
    sub.add_option("from", args.from, "this agent's memory: dram, vram:1")->required();
    sub.add_option("to", args.to, "the other's: dram, vram:1, file:FOLDER")->required();
    sub.add_option("--size", args.size, "bytes to move")->capture_default_str();
    sub.add_option("--pieces", args.pieces, "in so many equal pieces")->capture_default_str();
    sub.add_flag("--read", args.read, "READ from the second side instead of WRITE to it");
    sub.add_flag("--same-process", args.same_process, "both agents in one process");
    sub.add_flag("--one-agent", args.one_agent, "both sides belong to one agent");
  }
}

}  // namespace

int main(int argc, char** argv) {
  using namespace nixl;
  CLI::App app(
      "Says what this installation of NIXL can do, what it lacks, and what to do about it.",
      "nixl-info");
  app.set_version_flag("--version", std::string("nixl-info ") + versionText());
  app.require_subcommand(0, 1);
  Args args;
  const Command* chosen = &kCommands[0];
  for (const Command& command : kCommands) {
    CLI::App* sub = app.add_subcommand(command.name, command.help);
    addOptions(*sub, command.name, args);
    sub->callback([&chosen, &command] { chosen = &command; });
  }

  std::vector<std::string> given = words(argc, argv);
  try {
    std::reverse(given.begin(), given.end());  // as CLI11 takes them
    app.parse(given);
  } catch (const CLI::ParseError& e) {
    return tools::finish(tools::earlyEnd(app, e));
  }
  try {
    return chosen->run(args);
  } catch (const std::exception& e) {
    std::cout.flush();
    std::cerr << "nixl-info: " << chosen->name << ": " << e.what() << '\n';
    return tools::kFailed;
  }
}
