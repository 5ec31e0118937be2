#include "nixlbench/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

namespace nixl::bench {
namespace {

TEST(Summary, OfNothingIsAllZero) {
  EXPECT_EQ(summarize({}).count, 0U);
  EXPECT_EQ(summarize({}).p99, 0);
}

TEST(Summary, OfOneSampleIsThatSample) {
  const Summary s = summarize({7});
  EXPECT_EQ(s.min, 7);
  EXPECT_EQ(s.max, 7);
  EXPECT_EQ(s.p50, 7);
  EXPECT_EQ(s.p99, 7);
  EXPECT_EQ(s.stddev, 0);
}

TEST(Summary, TakesPercentilesThatOccurred) {
  std::vector<double> samples(100);
  std::iota(samples.rbegin(), samples.rend(), 1);  // 100 ... 1: the order must not matter
  const Summary s = summarize(samples);
  EXPECT_EQ(s.count, 100U);
  EXPECT_EQ(s.total, 5050);
  EXPECT_EQ(s.mean, 50.5);
  EXPECT_EQ(s.p50, 50);
  EXPECT_EQ(s.p95, 95);
  EXPECT_EQ(s.p99, 99);
  EXPECT_EQ(s.max, 100);
}

TEST(Summary, DeviationIsThatOfASample) {
  EXPECT_DOUBLE_EQ(summarize({2, 4, 4, 4, 5, 5, 7, 9}).stddev, std::sqrt(32.0 / 7));
}

}  // namespace
}  // namespace nixl::bench
