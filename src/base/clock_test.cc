#include "base/clock.h"

#include <gtest/gtest.h>

namespace nixl::base {
namespace {

using namespace std::chrono_literals;

TEST(Deadline, NeverDoesNotExpire) {
  Deadline deadline = Deadline::never();
  EXPECT_TRUE(deadline.isNever());
  EXPECT_FALSE(deadline.expired());
  EXPECT_EQ(deadline.remainingMs(), -1);
  EXPECT_EQ(deadline.remainingNs(), UINT64_MAX);
}

TEST(Deadline, OfZeroOrLessHasExpired) {
  for (auto duration : {0ms, -5ms, std::chrono::milliseconds::min()}) {
    Deadline deadline = Deadline::after(duration);
    EXPECT_TRUE(deadline.expired());
    EXPECT_EQ(deadline.remainingMs(), 0);
    EXPECT_EQ(deadline.remainingNs(), 0u);
  }
}

TEST(Deadline, TooFarAwayIsNever) {
  EXPECT_TRUE(Deadline::after(std::chrono::milliseconds::max()).isNever());
  EXPECT_TRUE(Deadline::after(std::chrono::hours::max()).isNever());
  EXPECT_TRUE(Deadline::at(std::chrono::steady_clock::time_point::max()).isNever());
}

TEST(Deadline, RoundsMillisecondsUpAndClampsThem) {
  EXPECT_EQ(Deadline::after(1ns).remainingMs() <= 1, true);
  int remaining = Deadline::after(1h).remainingMs();
  EXPECT_GT(remaining, 3'500'000);
  EXPECT_LE(remaining, 3'600'000);
  EXPECT_EQ(Deadline::after(24h * 365).remainingMs(), INT_MAX);
}

TEST(Deadline, CountsAsTheSteadyClockDoes) {
  auto before = std::chrono::steady_clock::now().time_since_epoch();
  uint64_t now = nowNs();
  auto after = std::chrono::steady_clock::now().time_since_epoch();
  EXPECT_LE(static_cast<uint64_t>(std::chrono::nanoseconds(before).count()), now);
  EXPECT_GE(static_cast<uint64_t>(std::chrono::nanoseconds(after).count()), now);
}

TEST(Deadline, TheEarlierOneIsTheSmallerOne) {
  EXPECT_LT(Deadline::after(1s), Deadline::after(1h));
  EXPECT_EQ(std::min(Deadline::never(), Deadline::atNs(5)), Deadline::atNs(5));
}

}  // namespace
}  // namespace nixl::base
