#include "core/work_queue.h"

#include <gtest/gtest.h>

namespace nixl::core {
namespace {

using Queue = WorkQueue<int>;

void push(Queue& queue, int name, uint64_t left) {
  queue.push(std::make_shared<int>(name), left);
}

// Takes turns of `slice` bytes until all are done; the order in which they end.
std::vector<int> run(Queue& queue, uint64_t slice) {
  std::vector<int> ended;
  while (!queue.empty()) {
    auto item = queue.take();
    if (item.left <= slice) {
      ended.push_back(*item.work);
    } else {
      const uint64_t left = item.left - slice;
      queue.putBack(std::move(item), left);
    }
  }
  return ended;
}

TEST(WorkQueue, WhatIsAlikeEndsInTheOrderInWhichItCame) {
  Queue queue;
  for (int i = 0; i < 5; ++i) push(queue, i, 100);
  EXPECT_EQ(run(queue, 10), (std::vector<int>{0, 1, 2, 3, 4}));
}

TEST(WorkQueue, WhatIsSmallDoesNotWaitForWhatIsLarge) {
  Queue queue;
  push(queue, 1, 1000);
  push(queue, 2, 10);
  push(queue, 3, 20);
  EXPECT_EQ(run(queue, 10), (std::vector<int>{2, 3, 1}));
}

TEST(WorkQueue, AStreamOfSmallOnesKeepsNothingWaiting) {
  Queue queue;
  push(queue, 0, 100);
  int turns = 0;
  for (bool ended = false; !ended; ++turns) {
    ASSERT_LT(turns, 100);
    push(queue, 1, 1);  // one comes for each that goes
    auto item = queue.take();
    ended = *item.work == 0 && item.left <= 10;
    if (*item.work == 0 && !ended) {
      const uint64_t left = item.left - 10;
      queue.putBack(std::move(item), left);
    }
  }
  EXPECT_LE(turns, 40) << "a quarter of the turns is the oldest's";
}

TEST(WorkQueue, GivesBackAllThatIsThere) {
  Queue queue;
  for (int i = 0; i < 3; ++i) push(queue, i, 7);
  EXPECT_EQ(queue.size(), 3u);
  EXPECT_EQ(queue.takeAll().size(), 3u);
  EXPECT_TRUE(queue.empty());
}

}  // namespace
}  // namespace nixl::core
