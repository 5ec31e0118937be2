#include "common/early_end.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <sstream>

#include "common/exit_code.h"

namespace nixl::tools {

EarlyEnd earlyEnd(const CLI::App& app, const CLI::ParseError& reason) {
  std::ostringstream out, err;
  const bool wanted = app.exit(reason, out, err) == 0;
  return {wanted ? kDone : kUsage, out.str(), wanted ? "" : app.get_name() + ": " + err.str()};
}

int finish(const EarlyEnd& end) {
  std::cout << end.output;
  std::cerr << end.diagnostics;
  return end.exit_code;
}

}  // namespace nixl::tools
