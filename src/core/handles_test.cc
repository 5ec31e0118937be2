#include "core/handles.h"

#include <gtest/gtest.h>

#include "core/gate.h"

#include <thread>

namespace nixl::core {
namespace {

TEST(HandleTable, ForgetsWhatWasTaken) {
  HandleTable<int> table;
  const uint64_t first = table.add(std::make_shared<int>(1));
  ASSERT_NE(first, 0u);
  EXPECT_EQ(*table.find(first), 1);
  EXPECT_EQ(*table.take(first), 1);
  EXPECT_EQ(table.find(first), nullptr);
  EXPECT_EQ(table.take(first), nullptr);
  const uint64_t second = table.add(std::make_shared<int>(2));
  EXPECT_NE(first, second) << "the slot is used again, the number is not";
  EXPECT_EQ(table.find(first), nullptr);
}

TEST(HandleTable, KnowsNothingOfOtherNumbers) {
  HandleTable<int> table;
  table.add(std::make_shared<int>(1));
  for (uint64_t handle : {uint64_t{0}, uint64_t{1}, UINT64_MAX, uint64_t{1} << 24 | 1})
    EXPECT_EQ(table.find(handle), nullptr) << handle;
}

TEST(Gate, ClosingWaitsForThoseInside) {
  Gate gate;
  ASSERT_TRUE(gate.enter());
  std::atomic<bool> closed{false};
  std::thread closer([&] {
    EXPECT_TRUE(gate.close());
    closed = true;
  });
  while (gate.open()) std::this_thread::yield();
  EXPECT_FALSE(gate.enter()) << "closed for newcomers at once";
  EXPECT_FALSE(closed);
  gate.leave();
  closer.join();
  EXPECT_TRUE(closed);
  EXPECT_FALSE(gate.close()) << "only once";
}

}  // namespace
}  // namespace nixl::core
