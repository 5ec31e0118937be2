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

Extent row(uint64_t base, uint64_t length, uint64_t stride, uint64_t count, uint64_t generation) {
  return {0, base, length, stride, count, 1, false, generation};
}

TEST(CoverIndex, CutsBlocksOutOfRows) {
  CoverIndex index;
  index.add({row(1000, 10, 100, 10, 20), row(5000, 7, 7, 1, 50)});
  EXPECT_FALSE(index.cut(row(1000, 9, 9, 1, 99))) << "another length";
  EXPECT_FALSE(index.cut(row(1010, 10, 10, 1, 99))) << "between the blocks";
  EXPECT_FALSE(index.cut(row(1300, 10, 10, 1, 22))) << "registered after that";
  EXPECT_TRUE(index.cut(row(1300, 10, 10, 1, 23)));
  for (uint64_t block = 0; block < 10; ++block)
    EXPECT_EQ(valueAt(index, 1000 + 100 * block, 10), block == 3 ? CoverIndex::kNone : 1u);
  EXPECT_EQ(index.size(), 3u);
  EXPECT_FALSE(index.cut(row(1300, 10, 10, 1, 23))) << "it is gone already";

  EXPECT_TRUE(index.cut(row(800, 10, 100, 4, 18))) << "the last two of them are the first of ours";
  EXPECT_EQ(valueAt(index, 1100, 10), CoverIndex::kNone);
  EXPECT_EQ(valueAt(index, 1200, 10), 1u);
  EXPECT_TRUE(index.cut(row(1400, 10, 200, 3, 99)));
  for (uint64_t block = 4; block < 10; ++block)
    EXPECT_EQ(valueAt(index, 1000 + 100 * block, 10), block % 2 || block > 8 ? 1u
                                                                             : CoverIndex::kNone);
  EXPECT_EQ(valueAt(index, 5000, 7), 1u);
  EXPECT_TRUE(index.cut(row(4986, 7, 7, 5, 90))) << "a single one among several";
  EXPECT_EQ(valueAt(index, 5000, 7), CoverIndex::kNone);
}

// Against a list of single blocks, which is plain to see through.
TEST(CoverIndex, CutsAsOneByOneWould) {
  std::mt19937_64 random(7);
  const auto below = [&](uint64_t n) { return random() % n; };
  for (int round = 0; round < 300; ++round) {
    CoverIndex rows, blocks;
    std::vector<Extent> cuts;
    uint64_t generation = 1;
    for (int i = 0; i < 4; ++i) {
      const uint64_t stride = 8 + 4 * below(3), count = 1 + below(6), base = 4 * below(20);
      rows.add(row(base, 8, count == 1 ? 8 : stride, count, generation));
      for (uint64_t k = 0; k < count; ++k)
        blocks.add(row(base + k * stride, 8, 8, 1, generation + k));
      generation += count;
    }
    for (int i = 0; i < 4; ++i) {
      const uint64_t stride = 8 + 4 * below(3), count = 1 + below(6), base = 4 * below(20);
      const uint64_t upto = 1 + below(generation);
      rows.cut(row(base, 8, count == 1 ? 8 : stride, count, upto));
      for (uint64_t k = 0; k < count; ++k) blocks.cut(row(base + k * stride, 8, 8, 1, upto + k));
    }
    for (uint64_t address = 0; address < 256; address += 4)
      EXPECT_EQ(valueAt(rows, address, 8), valueAt(blocks, address, 8)) << round << " " << address;
  }
}

TEST(CoverIndex, FindsOnAnyDevice) {
  CoverIndex index;
  index.add({range(1000, 100, 1, 0), range(2000, 100, 2, 3), range(3000, 100, 3, 9)});
  uint32_t hint = CoverIndex::kNone;
  EXPECT_TRUE(index.findAnywhere(2000, 100, hint));
  EXPECT_TRUE(index.findAnywhere(3050, 10, hint));
  EXPECT_TRUE(index.findAnywhere(1000, 1, hint));
  EXPECT_FALSE(index.findAnywhere(2000, 101, hint));
  EXPECT_FALSE(index.findAnywhere(100, 1, hint));
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
