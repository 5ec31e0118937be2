// common/early_end.h - a program that is to end before it began: --help, --version, wrong usage.
#pragma once

#include <string>

namespace CLI {  // NOLINT(readability-identifier-naming): theirs
class App;
class ParseError;
}  // namespace CLI

namespace nixl::tools {

struct EarlyEnd {
  int exit_code = 0;
  std::string output;       // for stdout
  std::string diagnostics;  // for stderr
};

// What CLI11 has to say about `reason`.
EarlyEnd earlyEnd(const CLI::App& app, const CLI::ParseError& reason);

// Prints it, and gives the exit code.
int finish(const EarlyEnd& end);

}  // namespace nixl::tools
