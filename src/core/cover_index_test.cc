#include "core/cover_index.h"

#include <gtest/gtest.h>

#include <random>

namespace nixl::core {
namespace {

Extent range(uint64_t base, uint64_t length, uint32_t value, uint64_t device = 0) {
  return {device, base, length, length, 1, value, false};
}

uint32_t valueAt(const CoverIndex& index, uint64_t address, uint64_t length, uint64_t device = 0) {
  uint32_t hint = CoverIndex::kNone;
  const uint32_t found = index.find(device, address, length, hint);
  return found == CoverIndex::kNone ? found : index.at(found).value;
}

TEST(CoverIndex, FindsTheRangeThatCovers) {
  CoverIndex index;
  index.add({range(1000, 100, 1), range(2000, 100, 2), range(3000, 100, 3, 7)});
  EXPECT_EQ(valueAt(index, 1000, 100), 1u);
  EXPECT_EQ(valueAt(index, 1050, 50), 1u);
  EXPECT_EQ(valueAt(index, 1050, 51), CoverIndex::kNone);
  EXPECT_EQ(valueAt(index, 999, 1), CoverIndex::kNone);
  EXPECT_EQ(valueAt(index, 2099, 1), 2u);
  EXPECT_EQ(valueAt(index, 2100, 0), 2u) << "an empty range at the end is inside";
  EXPECT_EQ(valueAt(index, 3000, 10), CoverIndex::kNone) << "another device";
  EXPECT_EQ(valueAt(index, 3000, 10, 7), 3u);
}

TEST(CoverIndex, DoesNotJoinNeighbours) {
  CoverIndex index;
  index.add({range(0, 4096, 1), range(4096, 4096, 2)});
  EXPECT_EQ(valueAt(index, 4000, 200), CoverIndex::kNone);
}

// A small range inside of a big one must not hide the big one from ranges that start behind it.
TEST(CoverIndex, FindsTheBigRangeBehindNestedOnes) {
  CoverIndex index;
  index.add(range(0, 1 << 20, 1));
  for (uint32_t i = 0; i < 100; ++i) index.add(range(1000 + i * 100, 50, 100 + i));
  EXPECT_EQ(valueAt(index, 1010, 500), 1u);
  EXPECT_EQ(valueAt(index, 500'000, 4096), 1u);
  EXPECT_EQ(valueAt(index, (1 << 20) - 1, 2), CoverIndex::kNone);
}

TEST(CoverIndex, TakesStridedExtentsAsSeparateRanges) {
  CoverIndex index;
  index.add(Extent{0, 1000, 10, 100, 5, 1, false});
  EXPECT_EQ(valueAt(index, 1000, 10), 1u);
  EXPECT_EQ(valueAt(index, 1405, 5), 1u);
  EXPECT_EQ(valueAt(index, 1405, 6), CoverIndex::kNone);
  EXPECT_EQ(valueAt(index, 1050, 1), CoverIndex::kNone) << "a gap";
  EXPECT_EQ(valueAt(index, 1500, 1), CoverIndex::kNone) << "behind the last";
}

TEST(CoverIndex, UnboundedExtentsReachToTheEnd) {
  CoverIndex index;
  index.add(Extent{3, 0, 0, 0, 1, 9, true});
  EXPECT_EQ(valueAt(index, 1ull << 40, 1ull << 41, 3), 9u);
  EXPECT_EQ(valueAt(index, UINT64_MAX, 2, 3), CoverIndex::kNone);
}

TEST(CoverIndex, RemovesOnlyTheOneThatWasMeant) {
  CoverIndex index;
  index.add({range(0, 100, 1), range(0, 100, 2), range(0, 100, 3)});
  EXPECT_TRUE(index.remove(range(0, 100, 2)));
  EXPECT_FALSE(index.remove(range(0, 100, 2)));
  EXPECT_EQ(index.size(), 2u);
  EXPECT_NE(valueAt(index, 0, 100), 2u);
}

// Against the obvious: look at every extent.
TEST(CoverIndex, AgreesWithALinearSearch) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 200; ++round) {
    CoverIndex index;
    std::vector<Extent> all;
    for (int i = 0; i < 30; ++i) {
      Extent extent = range(random() % 200, random() % 60, static_cast<uint32_t>(i), random() % 2);
      if (random() % 4 == 0) {
        extent.count = 1 + random() % 4;
        extent.length = 1 + random() % 9;
        extent.stride = extent.length + random() % 9;
      }
      all.push_back(extent);
      if (random() % 2) {
        index.add(extent);
      } else {
        index.add(std::vector<Extent>{extent, extent});
        index.remove(extent);
      }
      if (random() % 5 == 0) {
        index.remove(all[random() % all.size()]);
        all.clear();
        for (const Extent& e : index.extents()) all.push_back(e);
        if (all.empty()) break;
      }
    }
    uint32_t hint = CoverIndex::kNone;
    for (int i = 0; i < 300; ++i) {
      const uint64_t device = random() % 2, address = random() % 260, length = random() % 30;
      bool expected = false;
      for (const Extent& e : all) expected |= e.covers(device, address, length);
      const uint32_t found = index.find(device, address, length, hint);
      ASSERT_EQ(found != CoverIndex::kNone, expected) << address << "+" << length;
      if (expected) { ASSERT_TRUE(index.at(found).covers(device, address, length)); }
    }
  }
}

}  // namespace
}  // namespace nixl::core
