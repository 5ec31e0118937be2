// nixlbench/run.h - the initiator's side: measures every shape that was asked for.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "nixlbench/options.h"
#include "nixlbench/statistics.h"

namespace nixl::bench {

struct Result {
  Shape shape;
  Summary latency;  // microseconds, from before the post until it was seen to be done
  uint64_t seed = 0;
  std::string backend;                       // which carried it, as the library calls it
  std::string explanation;                   // the library's words about the path
  double cpu_percent = 0;                    // of one core, while the timed transfers ran
  std::optional<double> target_cpu_percent;  // none in one process, or a run below 10 ms
  std::optional<uint64_t> verified;          // bytes that were compared

  double gigabytesPerSecond() const;  // 1e9
};

// Calls `report` after each shape. Throws nixl::Error when a transfer fails, when the other side
// does, and when a byte is wrong.
void runBenchmark(const Options& options, const std::function<void(const Result&)>& report);

}  // namespace nixl::bench
