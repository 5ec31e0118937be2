#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

namespace nixl::base {

namespace {

// Sleeps until a non-blocking descriptor is ready again.
Status awaitReady(int fd, short events, const Deadline& deadline) {
  for (;;) {
    pollfd waiting = {fd, events, 0};
    int ready = poll(&waiting, 1, deadline.remainingMs());
    if (ready > 0) return {};  // an error or hang-up too: the next call tells which
    if (ready < 0 && errno != EINTR) return errnoStatus("poll", errno);
    if (ready == 0 && deadline.expired()) return {Errc::TIMEOUT, "the deadline passed"};
  }
}

// A socket whose peer has gone would raise SIGPIPE with write(), and end the user's process.
ssize_t writeQuietly(int fd, const void* data, size_t length) {
  ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
  if (sent < 0 && errno == ENOTSOCK) return write(fd, data, length);
  return sent;
}

std::string progressText(size_t done, size_t length) {
  return "after " + std::to_string(done) + " of " + std::to_string(length) + " bytes";
}

bool isAgain(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

// Calls step(done) until it has done everything, it has nothing more (0), or it fails.
template <typename Step>
Result<size_t> repeat(size_t length, Step step) {
  size_t done = 0;
  while (done < length) {
    ssize_t n = step(done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errnoStatus(progressText(done, length), errno);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

}  // namespace

Fd::Fd(int fd) noexcept : fd_(fd < 0 ? -1 : fd) {
  if (fd_ < 0) return;
  int saved = errno;
  fcntl(fd_, F_SETFD, FD_CLOEXEC);  // it is the only flag that there is
  errno = saved;
}

Result<Fd> Fd::open(const std::string& path, int flags, unsigned mode) {
  int fd;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return errnoStatus("open \"" + path + "\"", errno);
  return Fd(fd);
}

Result<Fd> Fd::duplicate() const {
  int fd = fcntl(fd_, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return errnoStatus("duplicate a descriptor", errno);
  return Fd(fd);
}

void Fd::reset() noexcept {
  if (fd_ < 0) return;
  int saved = errno;
  close(std::exchange(fd_, -1));  // not again after EINTR: Linux has closed it by then
  errno = saved;
}

Status writeAll(int fd, const void* data, size_t length, const Deadline& deadline) {
  const char* bytes = static_cast<const char*>(data);
  size_t done = 0;
  while (done < length) {
    ssize_t n = writeQuietly(fd, bytes + done, length - done);
    if (n > 0) {
      done += static_cast<size_t>(n);
    } else if (n == 0 || isAgain(errno)) {
      Status ready = awaitReady(fd, POLLOUT, deadline);
      if (!ready.ok()) return std::move(ready).within("write " + progressText(done, length));
    } else if (errno != EINTR) {
      return errnoStatus("write " + progressText(done, length), errno);
    }
  }
  return {};
}

Result<size_t> readUpTo(int fd, void* data, size_t length, const Deadline& deadline) {
  char* bytes = static_cast<char*>(data);
  size_t done = 0;
  while (done < length) {
    ssize_t n = read(fd, bytes + done, length - done);
    if (n > 0) {
      done += static_cast<size_t>(n);
    } else if (n == 0) {
      break;
    } else if (isAgain(errno)) {
      Status ready = awaitReady(fd, POLLIN, deadline);
      if (!ready.ok()) return std::move(ready).within("read " + progressText(done, length));
    } else if (errno != EINTR) {
      return errnoStatus("read " + progressText(done, length), errno);
    }
  }
  return done;
}

Status readAll(int fd, void* data, size_t length, const Deadline& deadline) {
  NIXL_ASSIGN_OR_RETURN(size_t done, readUpTo(fd, data, length, deadline));
  if (done < length)
    return {Errc::REMOTE_DISCONNECT, "read: the other end closed " + progressText(done, length)};
  return {};
}

Status preadAll(int fd, void* data, size_t length, uint64_t offset) {
  char* bytes = static_cast<char*>(data);
  Result<size_t> done = repeat(length, [&](size_t at) {
    return pread(fd, bytes + at, length - at, static_cast<off_t>(offset + at));
  });
  if (!done.has_value()) return std::move(done).error().within("read");
  if (*done < length) return {Errc::PARTIAL, "read: the file ends " + progressText(*done, length)};
  return {};
}

Status pwriteAll(int fd, const void* data, size_t length, uint64_t offset) {
  const char* bytes = static_cast<const char*>(data);
  Result<size_t> done = repeat(length, [&](size_t at) {
    return pwrite(fd, bytes + at, length - at, static_cast<off_t>(offset + at));
  });
  if (!done.has_value()) return std::move(done).error().within("write");
  if (*done < length)
    return {Errc::PARTIAL, "write: the system stopped " + progressText(*done, length)};
  return {};
}

Result<std::string> readFile(const std::string& path, size_t limit) {
  NIXL_ASSIGN_OR_RETURN(Fd fd, Fd::open(path, O_RDONLY));
  // In steps, because files in /proc and /sys do not say how long they are.
  std::string text;
  while (text.size() <= limit) {
    char part[4096];
    Result<size_t> got = readUpTo(fd.get(), part, sizeof(part));
    if (!got.has_value()) return std::move(got).error().within("\"" + path + "\"");
    text.append(part, *got);
    if (*got < sizeof(part)) break;
  }
  if (text.size() > limit)
    return {Errc::LIMIT, "read \"" + path + "\": longer than " + std::to_string(limit) + " bytes"};
  return text;
}

Result<EventFd> EventFd::create() {
  int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) return errnoStatus("create an eventfd", errno);
  return EventFd(Fd(fd));
}

void EventFd::signal() const noexcept {
  int saved = errno;
  uint64_t one = 1;
  // EAGAIN means that the counter is full, and so signalled.
  while (write(fd_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
  }
  errno = saved;
}

bool EventFd::drain() const noexcept {
  int saved = errno;
  uint64_t count = 0;
  ssize_t got;
  do {
    got = read(fd_.get(), &count, sizeof(count));
  } while (got < 0 && errno == EINTR);
  errno = saved;
  return got == sizeof(count);
}

}  // namespace nixl::base
