#include "nixlbench/report.h"

#include <gtest/gtest.h>

namespace nixl::bench {
namespace {

Result oneGigabyte() {
  Result r;
  r.shape = {1ULL << 30, 1, false};
  r.latency = {100, 2'375'000, 23'750, 22'100, 23'800, 412, 23'700, 23'790, 23'800};
  r.backend = "NET";
  r.seed = 1;
  r.cpu_percent = 99.6;
  r.target_cpu_percent = 1;
  r.verified = r.shape.bytes();
  return r;
}

TEST(FormatTime, KeepsThreeDigitsOrMore) {
  EXPECT_EQ(formatTime(0.4), "0.40 us");
  EXPECT_EQ(formatTime(32.5), "32.5 us");
  EXPECT_EQ(formatTime(999.9), "999.9 us");
  EXPECT_EQ(formatTime(2689.3), "2.69 ms");
  EXPECT_EQ(formatTime(22'100), "22.1 ms");
  EXPECT_EQ(formatTime(2'345'678), "2.35 s");
}

TEST(FormatRate, ChangesToMegabytesWhenSlow) {
  EXPECT_EQ(formatRate(45.2), "45.2 GB/s");
  EXPECT_EQ(formatRate(1.85), "1.85 GB/s");
  EXPECT_EQ(formatRate(0.12), "0.12 GB/s");
  EXPECT_EQ(formatRate(0.0321), "32.1 MB/s");
  EXPECT_EQ(formatRate(0.00321), "3.21 MB/s");
}

TEST(TextReport, BeginsWithTheSixLinesOfTheRequirements) {
  const std::string text = textReport({}, oneGigabyte());
  EXPECT_EQ(text.substr(0, text.find("\n\n") + 1),
            "Transfer size: 1.00 GB\n"
            "Iterations: 100\n"
            "Avg bandwidth: 45.2 GB/s\n"
            "Min latency: 22.1 ms\n"
            "Max latency: 23.8 ms\n"
            "Std dev: 412.0 us\n");
  EXPECT_NE(text.find("1 GB compared, all equal"), std::string::npos) << text;
}

TEST(Table, LooksLikeTheRequirements) {
  Options o;
  o.src = o.dst = {MemType::VRAM, 0};
  Result r = oneGigabyte();
  r.shape.block = 4096;
  r.latency.mean = 32.5;
  r.latency.p95 = 35.2;
  r.latency.p99 = 38.14;
  EXPECT_EQ(tableTitle(o, r) + tableRow(r),
            "=== NIXL Benchmark Results ===\n"
            "Backend: NET\n"
            "Memory Type: VRAM (GPU 0) -> VRAM (GPU 0, Remote)\n"
            "Operation: WRITE\n"
            "\n"
            "Buffer Size | Bandwidth | Latency (μs) | P95 (μs) | P99 (μs)\n"
            "------------|-----------|--------------|----------|----------\n"
            "4 KB        | 0.13 GB/s | 32.5         | 35.2     | 38.1\n");
}

TEST(Table, MarksTheTargetsMemoryAsRemote) {
  Options o;
  o.op = OpType::READ;
  EXPECT_NE(tableTitle(o, {}).find("DRAM (Remote) -> DRAM\n"), std::string::npos);
  o.peers = Peers::ONE_PROCESS;
  EXPECT_NE(tableTitle(o, {}).find("DRAM -> DRAM\n"), std::string::npos);
}

TEST(JsonReport, HoldsWhatScriptsRead) {
  const auto j = jsonReport({}, oneGigabyte(), {"a cpu", 2, 1024, "Linux", 0.5});
  EXPECT_EQ(j["size"], 1ULL << 30);
  EXPECT_NEAR(j["bandwidth_gbps"], 45.2, 0.05);
  EXPECT_DOUBLE_EQ(j["avg_latency_ms"], 23.75);
  EXPECT_DOUBLE_EQ(j["p99_latency_ms"], 23.8);
  EXPECT_EQ(j["verified"], true);
  EXPECT_EQ(j["bytes_verified"], 1ULL << 30);
  EXPECT_EQ(j["machine"]["cores"], 2);

  Result unverified = oneGigabyte();
  unverified.verified.reset();
  unverified.target_cpu_percent.reset();
  const auto k = jsonReport({}, unverified, {});
  EXPECT_EQ(k["verified"], false);
  EXPECT_TRUE(k["target_cpu_percent"].is_null());
}

}  // namespace
}  // namespace nixl::bench
