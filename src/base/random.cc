#include "base/random.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace nixl::base {

namespace {

bool fromDevice(char* to, size_t length) {
  int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  while (length > 0) {
    ssize_t got = read(fd, to, length);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    to += got;
    length -= static_cast<size_t>(got);
  }
  close(fd);
  return length == 0;
}

}  // namespace

void randomBytes(void* to, size_t length) {
  char* next = static_cast<char*>(to);
  while (length > 0) {
    ssize_t got = getrandom(next, length, 0);
    if (got > 0) {
      next += got;
      length -= static_cast<size_t>(got);
    } else if (got < 0 && errno == EINTR) {
      continue;
    } else if (fromDevice(next, length)) {  // a sandbox that forbids the call
      return;
    } else {
      std::fputs("nixl: the system gives no random bytes (getrandom, /dev/urandom)\n", stderr);
      std::abort();
    }
  }
}

}  // namespace nixl::base
