#include "base/sizes.h"

#include <gtest/gtest.h>

namespace nixl::base {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

struct SizeCase {
  const char* name;
  const char* text;
  std::optional<uint64_t> bytes;
};

class ParseSize : public testing::TestWithParam<SizeCase> {};

TEST_P(ParseSize, GivesBytesOrRejects) { EXPECT_EQ(parseSize(GetParam().text), GetParam().bytes); }

INSTANTIATE_TEST_SUITE_P(
    Sizes, ParseSize,
    testing::Values(
        SizeCase{"Plain", "4096", 4096}, SizeCase{"Zero", "0", 0}, SizeCase{"Bytes", "12B", 12},
        SizeCase{"KB", "4KB", 4096}, SizeCase{"Letter", "4k", 4096},
        SizeCase{"Kubernetes", "4Ki", 4096}, SizeCase{"MiB", "256 MiB", 256 << 20},
        SizeCase{"AnyCase", "1gb", kGiB}, SizeCase{"Fraction", "1.5GB", kGiB + kGiB / 2},
        SizeCase{"FractionOfAByte", "0.3KB", 307}, SizeCase{"Spaces", "  2 TB\n", 2048 * kGiB},
        SizeCase{"Largest", "18446744073709551615", UINT64_MAX},
        SizeCase{"LargestUnit", "15EB", uint64_t{15} << 60},
        SizeCase{"LongFraction", "1.000000000001EB", 1152921504607999897},
        SizeCase{"Overflow", "18446744073709551616", std::nullopt},
        SizeCase{"OverflowByUnit", "16EB", std::nullopt}, SizeCase{"Empty", "", std::nullopt},
        SizeCase{"OnlySpace", " ", std::nullopt}, SizeCase{"OnlyUnit", "KB", std::nullopt},
        SizeCase{"WrongUnit", "4QB", std::nullopt}, SizeCase{"UnitTwice", "4KBKB", std::nullopt},
        SizeCase{"BytesTwice", "4BB", std::nullopt}, SizeCase{"Negative", "-4KB", std::nullopt},
        SizeCase{"Plus", "+4KB", std::nullopt}, SizeCase{"Hexadecimal", "0x10", std::nullopt},
        SizeCase{"FractionOfBytes", "1.5", std::nullopt},
        SizeCase{"PointOnly", "1.KB", std::nullopt}, SizeCase{"TwoPoints", "1.5.5KB", std::nullopt},
        SizeCase{"Comma", "1,5GB", std::nullopt}),
    [](const auto& info) { return std::string(info.param.name); });

struct FormatCase {
  const char* name;
  uint64_t bytes;
  const char* text;
};

class FormatSize : public testing::TestWithParam<FormatCase> {};

TEST_P(FormatSize, UsesTheLargestUnit) { EXPECT_EQ(formatSize(GetParam().bytes), GetParam().text); }

INSTANTIATE_TEST_SUITE_P(
    Sizes, FormatSize,
    testing::Values(FormatCase{"Zero", 0, "0 B"}, FormatCase{"Bytes", 512, "512 B"},
                    FormatCase{"KB", 4096, "4 KB"}, FormatCase{"MB", 1 << 20, "1 MB"},
                    FormatCase{"Fraction", kGiB + kGiB / 2, "1.50 GB"},
                    FormatCase{"RoundsToTheNextUnit", (1 << 20) - 1, "1.00 MB"},
                    FormatCase{"Rounds", 1025, "1.00 KB"},
                    FormatCase{"Largest", UINT64_MAX, "16.00 EB"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace nixl::base
