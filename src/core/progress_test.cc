#include "core/progress.h"

#include <gtest/gtest.h>

namespace nixl::core {
namespace {

// A transfer with a deadline is posted while the clock is being looked at, say.
TEST(Progress, AChangeDuringTheClockworkIsLookedAtAgain) {
  int looks = 0;
  Progress* self = nullptr;
  Progress progress("test", [&](uint64_t) {
    if (++looks == 1) self->clockChanged();
    return UINT64_MAX;
  });
  self = &progress;
  ASSERT_TRUE(progress.start(false).ok());
  for (int i = 0; i < 5; ++i) progress.tryDrive(0);
  EXPECT_EQ(looks, 2);
  progress.stop();
}

}  // namespace
}  // namespace nixl::core
