// nixlbench: measures transfers between two agents; --help lists what can be chosen.
#include <cstdio>
#include <exception>
#include <iostream>

#include "common/exit_code.h"
#include "nixlbench/machine.h"
#include "nixlbench/options.h"
#include "nixlbench/report.h"
#include "nixlbench/run.h"
#include "nixlbench/target.h"

namespace {

using namespace nixl;
using namespace nixl::bench;

// A table grows row by row, with a new title where the blocks' size changes; JSON and text come at
// the end, so that a run that fails prints nothing that looks like a result.
void initiate(const Options& options) {
  const Machine machine = describeMachine();
  const bool as_table = options.output == Output::TABLE ||
                        (options.output == Output::TEXT && options.shapes.size() > 1);
  const bool table_per_block = options.blocks == Options::Blocks::OF_A_SIZE;
  std::vector<Result> results;
  runBenchmark(options, [&](const Result& result) {
    if (as_table) {
      const bool first = results.empty();
      if (first || (table_per_block && result.shape.block != results.back().shape.block))
        std::cout << (first ? "" : "\n") << tableTitle(options, result);
      std::cout << tableRow(result) << std::flush;
    }
    results.push_back(result);
  });

  if (as_table) {
    std::cout << tableEnd(options, results);
  } else if (options.output == Output::TEXT) {
    std::cout << textReport(options, results.front());
  } else {
    nlohmann::ordered_json all = nlohmann::ordered_json::array();
    for (const Result& result : results) all.push_back(jsonReport(options, result, machine));
    std::cout << (all.size() == 1 ? all[0] : all).dump(2) << '\n';
  }
}

void listenForOne(const Options& options) {
  const auto agent = makeAgent(kTargetName, options);
  Target target(*agent, chosenBackends(options));
  std::fprintf(
      stderr,
      "nixlbench: waiting on port %u; on the other host: nixlbench --connect THIS_HOST:%u\n",
      agent->listenPort(), agent->listenPort());
  serveNotifications(target, options.timeout * 10, options.timeout * 2);
}

int run(const Options& options) {
  switch (options.peers) {
    case Peers::LISTEN:
      listenForOne(options);
      return tools::kDone;
    case Peers::SERVE: {
      const auto agent = makeAgent(kTargetName, options);
      Target target(*agent, chosenBackends(options));
      return serveSocket(target, options.serve_fd, options.timeout * 2) ? tools::kDone
                                                                        : tools::kFailed;
    }
    default:
      initiate(options);
      return tools::kDone;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const auto parsed = parseOptions({argv + 1, argv + argc});
  if (const auto* end = std::get_if<tools::EarlyEnd>(&parsed)) return tools::finish(*end);
  const Options& options = std::get<Options>(parsed);
  try {
    return run(options);
  } catch (const std::exception& e) {
    const char* who = options.peers == Peers::SERVE ? "nixlbench (target)" : "nixlbench";
    std::cerr << who << ": " << e.what() << '\n';
    return tools::kFailed;
  }
}
