// nixlbench/report.h - results as people and programs read them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "nixlbench/machine.h"
#include "nixlbench/options.h"
#include "nixlbench/run.h"

namespace nixl::bench {

// Three digits and a unit: "32.5 us", "22.1 ms", "1.85 GB/s".
std::string formatTime(double microseconds);
std::string formatRate(double gigabytes_per_second);

// One size, a line for each figure.
std::string textReport(const Options& options, const Result& result);

// Several sizes: the title, then a row each.
std::string tableTitle(const Options& options, const Result& first);
std::string tableRow(const Result& result);
std::string tableEnd(const Options& options, const std::vector<Result>& results);

nlohmann::ordered_json jsonReport(const Options& options, const Result& result,
                                  const Machine& machine);

}  // namespace nixl::bench
