// What a failed check inside of libstdc++ does; see failed_check.h.
#include <gtest/gtest.h>

#include <vector>

namespace nixl::base {
namespace {

TEST(FailedCheck, SaysWhatFailedAndEndsTheProcess) {
#ifdef _GLIBCXX_ASSERTIONS
  std::vector<int> empty;
  volatile size_t past_the_end = 1;
  // The library of GCC 11 prints on stdout, which a death test does not see.
  const char* said = _GLIBCXX_RELEASE >= 12 ? "vector.*Assertion '.*' failed" : "";
  EXPECT_DEATH(empty[past_the_end] = 1, said);
#else
  GTEST_SKIP() << "this build has no checks inside of libstdc++ (Meson before 1.4, or b_ndebug)";
#endif
}

}  // namespace
}  // namespace nixl::base
