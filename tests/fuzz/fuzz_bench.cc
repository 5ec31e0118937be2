// The command line of nixlbench: arguments, separated by zero bytes.
#include <string>
#include <variant>
#include <vector>

#include "common/exit_code.h"
#include "fuzz.h"
#include "nixlbench/options.h"

namespace {

using namespace nixl;
using fuzz::require;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  std::vector<std::string> args;
  while (!in.empty() && args.size() < 32) args.emplace_back(in.text());

  const auto parsed = bench::parseOptions(args);
  if (const auto* end = std::get_if<tools::EarlyEnd>(&parsed)) {
    require(end->exit_code == 0 || end->exit_code == tools::kUsage, "an exit code of its own");
    require(!(end->exit_code == 0 ? end->output : end->diagnostics).empty(), "ends without a word");
    return 0;
  }
  const auto& options = std::get<bench::Options>(parsed);
  require(!options.shapes.empty(), "nothing to measure");
  for (const bench::Shape& shape : options.shapes) {
    require(shape.block > 0 && shape.count > 0, "a transfer of nothing");
    require(shape.count <= UINT64_MAX / shape.block, "a transfer beyond 64 bits");
  }
  require(options.iterations > 0, "no transfer");
  require(options.peers != bench::Peers::CONNECT || (!options.host.empty() && options.port != 0),
          "nobody to connect to");
  return 0;
}
