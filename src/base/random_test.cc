#include "base/random.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace nixl::base {
namespace {

TEST(RandomBytes, AreDifferentEveryTime) {
  std::set<std::string> seen;
  for (int i = 0; i < 100; ++i) {
    std::string bytes(16, '\0');
    randomBytes(bytes.data(), bytes.size());
    EXPECT_TRUE(seen.insert(bytes).second);
  }
}

TEST(RandomBytes, FillAllOfALargeBuffer) {
  // getrandom may stop early beyond 256 bytes. 64 zeros in a row would be chance once in 2^512.
  std::string bytes(1 << 20, '\0');
  randomBytes(bytes.data(), bytes.size());
  EXPECT_EQ(bytes.find(std::string(64, '\0')), std::string::npos);
  randomBytes(nullptr, 0);
}

}  // namespace
}  // namespace nixl::base
