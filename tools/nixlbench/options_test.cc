#include "nixlbench/options.h"

#include <gtest/gtest.h>

#include <sstream>

namespace nixl::bench {
namespace {

std::variant<Options, tools::EarlyEnd> parse(const std::string& line) {
  std::istringstream in(line);
  return parseOptions({std::istream_iterator<std::string>(in), {}});
}

Options accept(const std::string& line) {
  const auto parsed = parse(line);
  if (const auto* end = std::get_if<tools::EarlyEnd>(&parsed)) {
    ADD_FAILURE() << line << ": " << end->diagnostics;
    return {};
  }
  return std::get<Options>(parsed);
}

struct RefusedCase {
  const char* name;
  const char* line;
  const char* reason;  // what the diagnostics contain
};

class Refused : public testing::TestWithParam<RefusedCase> {};

TEST_P(Refused, EndsWithTwoAndSaysWhy) {
  const auto parsed = parse(GetParam().line);
  const auto* end = std::get_if<tools::EarlyEnd>(&parsed);
  ASSERT_NE(end, nullptr);
  EXPECT_EQ(end->exit_code, 2);
  EXPECT_EQ(end->output, "");
  EXPECT_EQ(end->diagnostics.rfind("nixlbench: ", 0), 0U) << end->diagnostics;
  EXPECT_NE(end->diagnostics.find(GetParam().reason), std::string::npos) << end->diagnostics;
}

INSTANTIATE_TEST_SUITE_P(
    Options, Refused,
    testing::Values(
        RefusedCase{"NoSize", "--size 4QB", "\"4QB\" is no size"},
        RefusedCase{"SizeZero", "--size 0", "is no size"},
        RefusedCase{"NotAMultiple", "--size 1000 --block-size 300", "not a multiple"},
        RefusedCase{"NotAMultipleOfCount", "--size 1000 --block-count 3", "not a multiple"},
        RefusedCase{"AllThree", "--size 4KB --block-size 1KB --block-count 4", "two of them"},
        RefusedCase{"TooManyBlocks", "--size 16GB --block-size 16", "at most"},
        RefusedCase{"TooLarge", "--block-size 8EB --block-count 4", "too large"},
        RefusedCase{"NothingToShuffle", "--scattered", "--block-size"},
        RefusedCase{"NoIterations", "--iterations 0", "not in range"},
        RefusedCase{"TwoWaysToMeet", "--listen --connect a:1", "exclude each other"},
        RefusedCase{"NoPort", "--connect host", "HOST:PORT"},
        RefusedCase{"BadPort", "--connect host:99999", "no port"},
        RefusedCase{"BadListenPort", "--listen=x", "no port"},
        RefusedCase{"Output", "--output yaml", "yaml"}, RefusedCase{"Mode", "--mode both", "both"},
        RefusedCase{"BothVerify", "--verify --no-verify", "excludes"},
        RefusedCase{"Unknown", "--nonsense", "--nonsense"},
        RefusedCase{"Positional", "1GB", "1GB"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Options, OfTheRequirementsAreUnderstood) {
  const Options o = accept("--mode p2p --size 1GB --iterations 100");
  EXPECT_EQ(o.shapes, (std::vector<Shape>{{1ULL << 30, 1, false}}));
  EXPECT_EQ(o.iterations, 100U);
  EXPECT_EQ(o.warmup, 10U);
  EXPECT_TRUE(o.verify);
  EXPECT_EQ(o.output, Output::TEXT);

  const Options gpu =
      accept("--src-type gpu --src-device 0 --dst-type GPU --dst-device 1 --output JSON");
  EXPECT_EQ(gpu.src.type, MemType::VRAM);
  EXPECT_EQ(gpu.dst.type, MemType::VRAM);
  EXPECT_EQ(gpu.dst.device, 1U);
  EXPECT_EQ(gpu.output, Output::JSON);
}

TEST(Options, CutTransfersIntoBlocks) {
  EXPECT_EQ(accept("--size 64KB,1MB --block-size 4KB --scattered").shapes,
            (std::vector<Shape>{{4096, 16, true}, {4096, 256, true}}));
  EXPECT_EQ(accept("--size 64KB --block-count 4").shapes, (std::vector<Shape>{{16384, 4, false}}));
  EXPECT_EQ(accept("--block-size 4KB,8KB --block-count 4").shapes,
            (std::vector<Shape>{{4096, 4, false}, {8192, 4, false}}));
  EXPECT_EQ(accept("--size 64KB,1MB").largest(), 1U << 20);
}

TEST(Options, GiveTheSourceToWhoeverSends) {
  const Options write = accept("--src-type gpu --dst-type cpu --op write");
  EXPECT_EQ(write.initiatorPlace().type, MemType::VRAM);
  const Options read = accept("--src-type gpu --dst-type cpu --op read");
  EXPECT_EQ(read.initiatorPlace().type, MemType::DRAM);
  EXPECT_EQ(read.targetPlace().type, MemType::VRAM);
}

TEST(Options, SayWhereTheOtherSideIs) {
  EXPECT_EQ(accept("").peers, Peers::TWO_PROCESSES);
  EXPECT_EQ(accept("--one-process").peers, Peers::ONE_PROCESS);

  const Options listen = accept("--listen");
  EXPECT_EQ(listen.peers, Peers::LISTEN);
  EXPECT_NE(listen.port, 0);
  EXPECT_EQ(accept("--listen=5555").port, 5555);

  const Options connect = accept("--connect [fe80::1]:5555");
  EXPECT_EQ(connect.peers, Peers::CONNECT);
  EXPECT_EQ(connect.host, "fe80::1");
  EXPECT_EQ(connect.port, 5555);
}

TEST(Options, HelpAndVersionGoToStdout) {
  for (const char* line : {"--help", "--version"}) {
    const auto parsed = parse(line);
    const auto* end = std::get_if<tools::EarlyEnd>(&parsed);
    ASSERT_NE(end, nullptr) << line;
    EXPECT_EQ(end->exit_code, 0);
    EXPECT_NE(end->output, "");
    EXPECT_EQ(end->diagnostics, "");
  }
}

}  // namespace
}  // namespace nixl::bench
