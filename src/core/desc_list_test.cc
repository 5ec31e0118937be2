#include "core/desc_list.h"

#include <gtest/gtest.h>

namespace nixl::core {
namespace {

using Table = std::vector<uint64_t>;

Result<DescList> make(const Table& table, unsigned columns) {
  return DescList::fromRows({MemType::DRAM, table.data(), table.size() / columns, columns});
}

TEST(DescList, KeepsEqualColumnsAsOneNumber) {
  Table table;
  for (uint64_t i = 0; i < 1000; ++i) table.insert(table.end(), {i * 4096, 4096, 3});
  auto list = make(table, 3);
  ASSERT_TRUE(list.has_value());
  EXPECT_EQ(list->lengths().size(), 1u);
  EXPECT_EQ(list->length(999), 4096u);
  EXPECT_EQ(list->device(999), 3u);
  EXPECT_LE(list->memory(), 64u);
}

TEST(DescList, EqualStepsTakeNoMemory) {
  Table table;
  for (uint64_t i = 0; i < 100000; ++i) table.insert(table.end(), {64 + i * 4096, 1024, 3});
  auto list = make(table, 3);
  ASSERT_TRUE(list.has_value());
  EXPECT_TRUE(list->stepped());
  EXPECT_LE(list->memory(), 64u);
  EXPECT_EQ(list->address(99999), 64u + 99999 * 4096);
  EXPECT_EQ(list->bytes(), 100000u * 1024);
  table[3 * 50000] += 1;
  list = make(table, 3);
  EXPECT_FALSE(list->stepped());
  EXPECT_EQ(list->address(50000), 65u + 50000 * 4096);
  EXPECT_EQ(list->address(99999), 64u + 99999 * 4096);
}

TEST(DescList, DescendingAddressesAreKeptAsTheyAre) {
  auto list = make({300, 8, 0, 200, 8, 0, 100, 8, 0}, 3);
  ASSERT_TRUE(list.has_value());
  EXPECT_FALSE(list->stepped());
  EXPECT_EQ(list->address(2), 100u);
}

TEST(DescList, OpensAColumnWhenASecondValueComes) {
  auto list = make({0, 8, 0, 16, 8, 0, 32, 4, 1, 48, 8, 0}, 3);
  ASSERT_TRUE(list.has_value());
  const uint64_t lengths[] = {8, 8, 4, 8}, devices[] = {0, 0, 1, 0};
  for (uint64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(list->length(i), lengths[i]) << i;
    EXPECT_EQ(list->device(i), devices[i]) << i;
  }
  EXPECT_EQ(list->bytes(), 28u);
}

TEST(DescList, StridedRowsStayRows) {
  auto list = make({0, 16, 0, 32, 100000, 1 << 30, 16, 0, 16, 5}, 5);
  ASSERT_TRUE(list.has_value());
  EXPECT_TRUE(list->strided());
  EXPECT_EQ(list->size(), 100005u);
  EXPECT_LE(list->memory(), 1000u);
  EXPECT_NE(list->describe(100001).find("block 1 of row 1"), std::string::npos);
}

struct BadCase {
  const char* name;
  Table table;
  unsigned columns;
  Errc code;
};

class BadTable : public testing::TestWithParam<BadCase> {};

TEST_P(BadTable, IsRefused) {
  auto list = make(GetParam().table, GetParam().columns);
  ASSERT_FALSE(list.has_value());
  EXPECT_EQ(list.error().code(), GetParam().code) << list.error().message();
}

constexpr uint64_t kMinus = static_cast<uint64_t>(-64);

INSTANTIATE_TEST_SUITE_P(
    Tables, BadTable,
    testing::Values(BadCase{"Empty", {}, 3, Errc::NOT_FOUND},
                    BadCase{"Columns", {1, 2, 3, 4}, 4, Errc::INVALID_PARAM},
                    BadCase{"Wraps", {UINT64_MAX - 3, 5, 0}, 3, Errc::INVALID_PARAM},
                    BadCase{"NoBlocks", {0, 16, 0, 16, 0}, 5, Errc::NOT_FOUND},
                    BadCase{"EmptyBlocks", {0, 0, 0, 16, 1}, 5, Errc::NOT_FOUND},
                    BadCase{"Overlap", {0, 16, 0, 15, 1}, 5, Errc::NOT_FOUND},
                    BadCase{"StridedWraps", {1 << 20, 16, 0, kMinus, 3}, 5, Errc::NOT_FOUND},
                    BadCase{"ManyBlocks", {0, 1, 0, 1, 1ull << 40}, 5, Errc::NOT_FOUND}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace nixl::core
