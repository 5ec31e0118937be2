// nixl-info/command.h - a command is a function in a table: see main.cc.
#pragma once

#include <string>
#include <vector>

namespace nixl::info {

struct Args {
  bool json = false;
  bool markdown = false;            // config: the page of the documentation
  bool details = false;             // plugins: everything that is known of each
  std::vector<std::string> names;   // plugins, config: only these
  std::string root;                 // system, check: a copy of a machine's /proc, /sys and /dev
  std::string python;               // system, check: the interpreter to ask
  std::string from, to;             // path: "dram", "vram:1", "file:/mnt"
  std::string size = "16MB";        // path
  unsigned pieces = 1;              // path
  bool read = false;                // path: READ instead of WRITE
  bool same_process = false;        // path: both agents in one process
  bool one_agent = false;           // path: both sides belong to one agent
};

// Prints to stdout; throws nixl::Error when there is no result. Gives the exit code.
struct Command {
  const char* name;
  const char* help;
  int (*run)(const Args& args);
};

int check(const Args& args);
int listPlugins(const Args& args);
int showSystem(const Args& args);
int showConfig(const Args& args);
int showPath(const Args& args);

}  // namespace nixl::info
