#include "nixlbench/verify.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

namespace nixl::bench {
namespace {

constexpr uint64_t kSeed = 7;

// What a transfer does, and what both sides see of it.
struct Moved {
  explicit Moved(Shape s)
      : shape(s),
        own(blockOffsets(s, Side::INITIATOR, kSeed)),
        theirs(blockOffsets(s, Side::TARGET, kSeed)),
        source(makeBuffer({}, s.bytes())),
        destination(makeBuffer({}, s.bytes())) {
    fill(*source, s.bytes(), Role::SOURCE, kSeed);
    fill(*destination, s.bytes(), Role::DESTINATION, kSeed);
  }
  void moveBlock(size_t from, size_t to) {
    std::vector<std::byte> block(shape.block);
    source->read(own[from], block);
    destination->write(theirs[to], block);
  }
  void move() {
    for (size_t i = 0; i < shape.count; ++i) moveBlock(i, i);
  }
  Inspection inspectSource() { return inspect(*source, shape.block, own, own, kSeed); }
  Inspection inspectDestination() { return inspect(*destination, shape.block, theirs, own, kSeed); }

  Shape shape;
  std::vector<uint64_t> own, theirs;
  std::unique_ptr<Buffer> source, destination;
};

class Verification : public testing::TestWithParam<Shape> {};

TEST_P(Verification, AcceptsWhatWasMoved) {
  Moved moved(GetParam());
  moved.move();
  EXPECT_FALSE(moved.inspectDestination().difference);
  EXPECT_EQ(moved.inspectDestination().checksum, moved.inspectSource().checksum);
}

TEST_P(Verification, NoticesThatNothingCame) {
  Moved moved(GetParam());
  ASSERT_TRUE(moved.inspectDestination().difference);
  EXPECT_NE(moved.inspectDestination().checksum, moved.inspectSource().checksum);
}

TEST_P(Verification, FindsTheOffsetOfOneWrongByte) {
  Moved moved(GetParam());
  moved.move();
  const uint64_t at = moved.shape.bytes() - 1;
  std::byte byte;
  moved.destination->read(at, {&byte, 1});
  byte ^= std::byte{1};
  moved.destination->write(at, {&byte, 1});
  const Inspection seen = moved.inspectDestination();
  ASSERT_TRUE(seen.difference);
  EXPECT_EQ(seen.difference->offset, at);
  EXPECT_EQ(seen.difference->found, static_cast<unsigned>(byte));
  EXPECT_EQ(seen.difference->expected, static_cast<unsigned>(byte) ^ 1U);
  EXPECT_NE(seen.checksum, moved.inspectSource().checksum);
}

INSTANTIATE_TEST_SUITE_P(Shapes, Verification,
                         testing::Values(Shape{1, 1, false}, Shape{4096, 1, false},
                                         Shape{(2 << 20) + 5, 1, false}, Shape{4096, 33, true},
                                         Shape{13, 100, true}, Shape{13, 100, false}));

TEST(Verification, NoticesABlockInTheWrongPlace) {
  Moved moved({4096, 8, true});
  moved.move();
  moved.moveBlock(2, 5);
  const Inspection seen = moved.inspectDestination();
  ASSERT_TRUE(seen.difference);
  EXPECT_EQ(seen.difference->offset / 4096 * 4096, moved.theirs[5]);
}

TEST(BlockOffsets, AreAShuffleThatBothSidesCanRepeat) {
  const Shape shape{4096, 1000, true};
  const auto own = blockOffsets(shape, Side::INITIATOR, 1);
  EXPECT_EQ(own, blockOffsets(shape, Side::INITIATOR, 1));
  EXPECT_NE(own, blockOffsets(shape, Side::TARGET, 1));
  EXPECT_NE(own, blockOffsets(shape, Side::INITIATOR, 2));
  EXPECT_EQ(std::set<uint64_t>(own.begin(), own.end()).size(), shape.count);
  EXPECT_EQ(*std::max_element(own.begin(), own.end()), shape.bytes() - shape.block);
  EXPECT_FALSE(std::is_sorted(own.begin(), own.end()));
  const auto in_order = blockOffsets({4096, 1000, false}, Side::TARGET, 1);
  EXPECT_TRUE(std::is_sorted(in_order.begin(), in_order.end()));
}

TEST(GpuMemory, KeepsWhatIsWrittenToIt) {
  const Place gpu{MemType::VRAM, 0};
  try {
    requirePlace(gpu);
  } catch (const Error& e) {
    GTEST_SKIP() << e.what();
  }
  const uint64_t bytes = (3 << 20) + 5, none[] = {0};
  const auto buffer = makeBuffer(gpu, bytes);
  fill(*buffer, bytes, Role::SOURCE, kSeed);
  EXPECT_FALSE(inspect(*buffer, bytes, none, none, kSeed).difference);
  fill(*buffer, bytes, Role::DESTINATION, kSeed);
  EXPECT_EQ(inspect(*buffer, bytes, none, none, kSeed).difference->offset, 0U);
}

TEST(Pattern, DoesNotDependOnHowItIsCut) {
  std::vector<std::byte> whole(1000), parts(1000);
  fillPattern(3, 5, whole);
  for (size_t at = 0; at < parts.size(); at += 7)
    fillPattern(3, 5 + at, std::span(parts).subspan(at, std::min<size_t>(7, parts.size() - at)));
  EXPECT_EQ(whole, parts);
  EXPECT_FALSE(findDifference(3, 5, whole));
  EXPECT_EQ(findDifference(3, 6, whole)->offset, 6U);
}

}  // namespace
}  // namespace nixl::bench
