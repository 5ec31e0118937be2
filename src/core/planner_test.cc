#include "core/planner.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace nixl::core {
namespace {

using Table = std::vector<uint64_t>;

DescList listOf(const Table& table, unsigned columns) {
  return *DescList::fromRows({MemType::DRAM, table.data(), table.size() / columns, columns});
}

// `count` blocks of `length` bytes, `stride` apart.
Table blocks(uint64_t base, uint64_t length, uint64_t stride, uint64_t count) {
  Table table;
  for (uint64_t i = 0; i < count; ++i)
    table.insert(table.end(), {base + i * stride, length, 0});
  return table;
}

const std::vector<uint32_t> kOneRegion{0};

Result<Plan> plan(const DescList& local, std::vector<int32_t> li, const DescList& remote,
                  std::vector<int32_t> ri, bool merge = true, uint64_t max_piece = 0) {
  EXPECT_EQ(li.size(), ri.size());
  return makePlan(OpType::WRITE, {&local, &kOneRegion}, li.data(), {&remote, &kOneRegion},
                  ri.data(), li.size(), {max_piece, merge});
}

struct MergeCase {
  const char* name;
  std::vector<int32_t> local, remote;
  uint64_t pieces;
};

class Merging : public testing::TestWithParam<MergeCase> {};

TEST_P(Merging, JoinsOnlyWhereBothSidesContinue) {
  const DescList local = listOf(blocks(0x10000, 64, 64, 16), 3);
  const DescList remote = listOf({0x90000, 64, 0, 64, 16}, 5);
  const auto& c = GetParam();
  auto merged = plan(local, c.local, remote, c.remote);
  ASSERT_TRUE(merged.has_value()) << merged.error().message();
  EXPECT_EQ(merged->count, c.pieces);
  EXPECT_EQ(merged->descriptors, c.pieces);
  EXPECT_EQ(merged->bytes, 64 * c.local.size());
  auto unmerged = plan(local, c.local, remote, c.remote, false);
  EXPECT_EQ(unmerged->count, c.local.size());
}

INSTANTIATE_TEST_SUITE_P(
    Indices, Merging,
    testing::Values(MergeCase{"Consecutive", {0, 1, 2, 3}, {4, 5, 6, 7}, 1},
                    MergeCase{"RemoteSkips", {0, 1, 2, 3}, {0, 2, 4, 6}, 4},
                    MergeCase{"Descending", {3, 2, 1, 0}, {3, 2, 1, 0}, 4},
                    MergeCase{"Repeated", {1, 1, 1}, {2, 3, 4}, 3},
                    MergeCase{"TwoRuns", {0, 1, 8, 9}, {0, 1, 8, 9}, 2},
                    MergeCase{"One", {5}, {0}, 1}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Planner, DoesNotJoinRowsThatTouch) {
  const DescList rows = listOf({0, 64, 0, 64, 4, 256, 64, 0, 64, 4}, 5);
  auto made = plan(rows, {2, 3, 4, 5}, rows, {2, 3, 4, 5});
  ASSERT_TRUE(made.has_value());
  EXPECT_EQ(made->count, 2u);
}

TEST(Planner, DoesNotJoinBlocksWithGaps) {
  const DescList gaps = listOf({0, 64, 0, 128, 4}, 5);
  EXPECT_EQ(plan(gaps, {0, 1}, gaps, {0, 1})->count, 2u);
}

TEST(Planner, KeepsRegionsApart) {
  const DescList list = listOf(blocks(0, 64, 64, 4), 3);
  const std::vector<uint32_t> regions{0, 0, 1, 1};
  const std::vector<int32_t> indices{0, 1, 2, 3};
  auto made = makePlan(OpType::READ, {&list, &regions}, indices.data(), {&list, &kOneRegion},
                       indices.data(), 4, {0, true});
  ASSERT_TRUE(made.has_value());
  ASSERT_EQ(made->count, 2u);
  EXPECT_EQ(made->local_region()[0], 0u);
  EXPECT_EQ(made->local_region()[1], 1u);
  EXPECT_EQ(made->remote_region(), nullptr);
}

TEST(Planner, SplitsPiecesThatAreTooLong) {
  const DescList list = listOf({0x1000, 1000, 0, 0x5000, 10, 0, 0x6000, 0, 0}, 3);
  auto made = plan(list, {0, 1, 2}, list, {0, 1, 2}, false, 400);
  ASSERT_TRUE(made.has_value());
  ASSERT_EQ(made->count, 5u);
  EXPECT_EQ(made->descriptors, 3u);
  EXPECT_EQ(made->length()[2], 200u);
  EXPECT_EQ(made->local_address()[2], 0x1000u + 800);
  EXPECT_EQ(made->length()[4], 0u) << "an empty piece stays a piece";
}

struct BadCase {
  const char* name;
  std::vector<int32_t> local, remote;
  const char* says;
};

class BadIndices : public testing::TestWithParam<BadCase> {};

TEST_P(BadIndices, AreRefusedWithTheirPosition) {
  const DescList local = listOf(blocks(0, 64, 64, 4), 3);
  Table table = blocks(0, 64, 64, 3);
  table.insert(table.end(), {4096, 32, 0});
  const DescList remote = listOf(table, 3);
  auto made = plan(local, GetParam().local, remote, GetParam().remote);
  ASSERT_FALSE(made.has_value());
  EXPECT_EQ(made.error().code(), Errc::INVALID_PARAM);
  EXPECT_NE(made.error().message().find(GetParam().says), std::string::npos)
      << made.error().message();
}

INSTANTIATE_TEST_SUITE_P(
    Indices, BadIndices,
    testing::Values(BadCase{"None", {}, {}, "no indices"},
                    BadCase{"TooLarge", {0, 4}, {0, 0}, "index 4 at position 1"},
                    BadCase{"Negative", {0}, {-1}, "index -1 at position 0"},
                    BadCase{"Lengths", {0, 1}, {0, 3}, "differ in length"}),
    [](const auto& info) { return std::string(info.param.name); });

// Any choice of positions gives the pieces that a simple loop gives, joined or not.
TEST(Planner, MovesWhatWasChosen) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 300; ++round) {
    const bool strided = random() % 2;
    const uint64_t length = 16 << random() % 3;
    Table flat, rows;
    for (uint64_t row = 0; row < 5; ++row) {
      const uint64_t stride = length + (random() % 2) * 32, count = 1 + random() % 8;
      const uint64_t base = 0x1000 * (row + 1);
      rows.insert(rows.end(), {base, length, 0, stride, count});
      const Table part = blocks(base, length, stride, count);
      flat.insert(flat.end(), part.begin(), part.end());
    }
    const DescList local = strided ? listOf(rows, 5) : listOf(flat, 3);
    const DescList remote = listOf(blocks(0x100000, length, length, 64), 3);
    std::vector<int32_t> li, ri;
    for (uint64_t i = 0, n = 1 + random() % 40; i < n; ++i) {
      const bool next = !li.empty() && random() % 2 && li.back() + 1 < int(local.size()) &&
                        ri.back() + 1 < 64;
      li.push_back(next ? li.back() + 1 : static_cast<int32_t>(random() % local.size()));
      ri.push_back(next ? ri.back() + 1 : static_cast<int32_t>(random() % 64));
    }
    auto made = plan(local, li, remote, ri, random() % 2);
    ASSERT_TRUE(made.has_value());
    uint64_t at = 0;
    for (uint64_t piece = 0; piece < made->count; ++piece)
      for (uint64_t offset = 0; offset < made->length()[piece]; offset += length, ++at) {
        ASSERT_EQ(made->local_address()[piece] + offset, flat[3 * static_cast<size_t>(li[at])]);
        ASSERT_EQ(made->remote_address()[piece] + offset,
                  0x100000 + length * static_cast<uint64_t>(ri[at]));
      }
    ASSERT_EQ(at, li.size());
  }
}

TEST(Planner, SplitsWhatIsNearlyAllOfTheAddressSpace) {
  // Rounded up to whole pieces, the first length wraps.
  constexpr uint64_t kPiece = uint64_t{1} << 62;
  const DescList local = listOf({0, UINT64_MAX - 1, 0, 0, 3 * kPiece, 0}, 3);
  const DescList remote = listOf({1, UINT64_MAX - 1, 0, 1, 3 * kPiece, 0}, 3);
  auto split = plan(local, {0, 1}, remote, {0, 1}, false, kPiece);
  ASSERT_TRUE(split.has_value()) << split.error().message();
  ASSERT_EQ(split->count, 4u + 3u);
  EXPECT_EQ(split->remote_address()[3], 1 + 3 * kPiece);
  EXPECT_EQ(split->length()[3], kPiece - 2);
  EXPECT_EQ(split->remote_address()[6], 1 + 2 * kPiece);
}

TEST(Planner, ListsWithoutIndicesMustBeEquallyLong) {
  const DescList two = listOf(blocks(0, 64, 64, 2), 3), three = listOf(blocks(0, 64, 64, 3), 3);
  for (const auto& [local, remote] : {std::pair(&two, &three), std::pair(&three, &two)})
    for (const uint64_t count : {2, 3}) {
      auto refused = makePlan(OpType::WRITE, {local, &kOneRegion}, nullptr, {remote, &kOneRegion},
                              nullptr, count, {});
      ASSERT_FALSE(refused.has_value());
      EXPECT_EQ(refused.error().code(), Errc::INVALID_PARAM);
    }
}

}  // namespace
}  // namespace nixl::core
