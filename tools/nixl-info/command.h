// nixl-info/command.h - a command is a function in a table: see main.cc.
#pragma once

namespace nixl::info {

struct Args {
  bool json = false;
};

struct Command {
  const char* name;
  const char* help;
  void (*run)(const Args& args);  // prints to stdout; throws nixl::Error when there is no result
};

void listPlugins(const Args& args);

}  // namespace nixl::info
