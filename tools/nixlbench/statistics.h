// nixlbench/statistics.h - what a run's latencies come to.
#pragma once

#include <cstddef>
#include <vector>

namespace nixl::bench {

struct Summary {
  size_t count = 0;
  double total = 0, mean = 0, min = 0, max = 0, stddev = 0;  // in the samples' unit
  double p50 = 0, p95 = 0, p99 = 0;  // by nearest rank: values that occurred
};

Summary summarize(std::vector<double> samples);

}  // namespace nixl::bench
