// base/failed_check.h - included before everything else, in every file; see the root's meson.build.
//
// A failed check inside of libstdc++ (an index past the end of a vector, say) calls
// std::__glibcxx_assert_fail. That function came with GCC 12: a library that calls it cannot be
// loaded where the system's libstdc++ is that of GCC 11, such as Enterprise Linux 9. Written out
// here, the check stays, says the same, and needs nothing new.
#pragma once

#ifdef __cplusplus
#include <cstdio>
#include <cstdlib>

#define __glibcxx_assert_fail(file, line, function, condition)                                    \
  fprintf(stderr, "%s:%d: %s: Assertion '%s' failed.\n", file, line, function, condition),        \
      std::abort()
#endif
