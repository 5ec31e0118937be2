#include "nixlbench/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nixl::bench {

Summary summarize(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  const auto count = static_cast<double>(samples.size());
  auto percentile = [&](double p) {
    return samples[static_cast<size_t>(std::max(1.0, std::ceil(count * p / 100))) - 1];
  };

  Summary s;
  s.count = samples.size();
  s.total = std::accumulate(samples.begin(), samples.end(), 0.0);
  s.mean = s.total / count;
  s.min = samples.front();
  s.max = samples.back();
  s.p50 = percentile(50);
  s.p95 = percentile(95);
  s.p99 = percentile(99);
  double squares = 0;
  for (double x : samples) squares += (x - s.mean) * (x - s.mean);
  s.stddev = samples.size() > 1 ? std::sqrt(squares / (count - 1)) : 0;
  return s;
}

}  // namespace nixl::bench
