// base/fd.h - owned file descriptors, and reads and writes that do not stop half way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "base/status.h"

namespace nixl::base {

// Owns a file descriptor. All of ours are close-on-exec: a descriptor that survives exec() keeps
// sockets and memory of a dead agent alive. Still pass O_CLOEXEC, SOCK_CLOEXEC or MSG_CMSG_CLOEXEC
// where the descriptor is made: setting the flag afterwards leaves a gap in which another thread
// may fork.
class Fd {
 public:
  Fd() noexcept = default;

  // Takes ownership and sets close-on-exec. A negative number is no descriptor. Leaves errno alone.
  explicit Fd(int fd) noexcept;

  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~Fd() { reset(); }

  // `flags` as for open(2). The error names the path.
  static Result<Fd> open(const std::string& path, int flags, unsigned mode = 0600);

  // A second descriptor of the same open file.
  Result<Fd> duplicate() const;

  int get() const noexcept { return fd_; }
  bool valid() const noexcept { return fd_ >= 0; }
  explicit operator bool() const noexcept { return valid(); }

  // Gives the descriptor away.
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }

  // Closes it now. Leaves errno alone.
  void reset() noexcept;

 private:
  int fd_ = -1;
};

// The helpers below take signals (EINTR) and short counts in their stride. On a non-blocking
// descriptor they wait in poll() until the deadline (then TIMEOUT); a blocking one does not look at
// the deadline.

// Writes all of it. A peer that has gone is REMOTE_DISCONNECT, never SIGPIPE, if it is a socket.
Status writeAll(int fd, const void* data, size_t length,
                const Deadline& deadline = Deadline::never());

// Reads exactly `length` bytes; an end before that is REMOTE_DISCONNECT and says how many came.
Status readAll(int fd, void* data, size_t length, const Deadline& deadline = Deadline::never());

// Reads until `length` bytes or the end of the file; returns how many.
Result<size_t> readUpTo(int fd, void* data, size_t length,
                        const Deadline& deadline = Deadline::never());

// At an offset, for files: all bytes or an error.
Status preadAll(int fd, void* data, size_t length, uint64_t offset);
Status pwriteAll(int fd, const void* data, size_t length, uint64_t offset);

// A whole small file (/proc, /sys, a key). More than `limit` bytes is the error LIMIT.
Result<std::string> readFile(const std::string& path, size_t limit = 1 << 20);

// Wakes a thread that sleeps in poll or epoll.
class EventFd {
 public:
  static Result<EventFd> create();

  // Any number of signals before a drain() are one wake-up. Never blocks; safe in a signal handler.
  void signal() const noexcept;

  // Makes the descriptor unreadable again; true if it had been signalled. Never blocks.
  bool drain() const noexcept;

  int fd() const noexcept { return fd_.get(); }

 private:
  explicit EventFd(Fd fd) noexcept : fd_(std::move(fd)) {}
  Fd fd_;
};

}  // namespace nixl::base
