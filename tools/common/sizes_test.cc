#include "common/sizes.h"

#include <gtest/gtest.h>

namespace nixl::tools {
namespace {

struct ParseCase {
  const char* name;
  const char* text;
  std::optional<uint64_t> bytes;
};

class ParseSize : public testing::TestWithParam<ParseCase> {};

TEST_P(ParseSize, GivesBytesOrRejects) {
  EXPECT_EQ(parseSize(GetParam().text), GetParam().bytes) << '"' << GetParam().text << '"';
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, ParseSize,
    testing::Values(
        ParseCase{"Plain", "4096", 4096}, ParseCase{"Bytes", "17B", 17},
        ParseCase{"Kilo", "4KB", 4096}, ParseCase{"LowerCase", "64kb", 65536},
        ParseCase{"LetterAlone", "1g", 1ULL << 30}, ParseCase{"WithI", "2MiB", 2ULL << 20},
        ParseCase{"WithBlank", "256 MB", 256ULL << 20}, ParseCase{"Fraction", "1.5GB", 3ULL << 29},
        ParseCase{"Largest", "15EB", 15ULL << 60}, ParseCase{"TooLarge", "16EB", std::nullopt},
        ParseCase{"TooLargeFraction", "16.0EB", std::nullopt},
        ParseCase{"FractionOfAByte", "1.5", std::nullopt},
        ParseCase{"TwoPoints", "1.5.2GB", std::nullopt}, ParseCase{"PointAlone", ".", std::nullopt},
        ParseCase{"Empty", "", std::nullopt}, ParseCase{"UnitAlone", "KB", std::nullopt},
        ParseCase{"Negative", "-4KB", std::nullopt}, ParseCase{"WrongUnit", "4QB", std::nullopt},
        ParseCase{"Rest", "4KBx", std::nullopt}, ParseCase{"BlankInside", "1 2KB", std::nullopt},
        ParseCase{"BlanksAround", "  4  KB ", 4096}),
    [](const auto& info) { return std::string(info.param.name); });

struct FormatCase {
  uint64_t bytes;
  bool fixed;
  const char* text;
};

TEST(FormatSize, TakesTheLargestUnitThatGivesOne) {
  for (const FormatCase& c :
       {FormatCase{0, false, "0 B"}, FormatCase{1023, true, "1023 B"},
        FormatCase{4096, false, "4 KB"}, FormatCase{4096, true, "4.00 KB"},
        FormatCase{3ULL << 29, false, "1.50 GB"}, FormatCase{1ULL << 30, true, "1.00 GB"},
        FormatCase{UINT64_MAX, false, "16.00 EB"}})
    EXPECT_EQ(formatSize(c.bytes, c.fixed), c.text);
}

}  // namespace
}  // namespace nixl::tools
