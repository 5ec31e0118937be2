#include "base/fork.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace nixl::base {
namespace {

TEST(ForkGeneration, ChangesInTheChildOnly) {
  const uint64_t before = forkGeneration();
  EXPECT_EQ(forkGeneration(), before);
  pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    bool changed = forkGeneration() != before;
    const uint64_t mine = forkGeneration();
    pid_t grandchild = fork();
    if (grandchild == 0) _exit(forkGeneration() != mine && forkGeneration() != before ? 0 : 1);
    int status = 1;
    waitpid(grandchild, &status, 0);
    _exit(changed && status == 0 ? 0 : 1);
  }
  int status = 1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(forkGeneration(), before);
}

}  // namespace
}  // namespace nixl::base
