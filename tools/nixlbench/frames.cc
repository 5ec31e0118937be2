#include "nixlbench/frames.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

namespace nixl::bench {

namespace {

constexpr uint32_t kLargestFrame = 256 << 20;

[[noreturn]] void fail(const char* action) {
  throw Error(Errc::REMOTE_DISCONNECT, std::string(action) + ": " + std::strerror(errno));
}

void waitFor(int fd, short events, Deadline deadline, const char* action) {
  for (;;) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd p{fd, events, 0};
    if (left.count() <= 0) throw Error(Errc::TIMEOUT, std::string(action) + ": no answer in time");
    const int ready = ::poll(&p, 1, static_cast<int>(std::min<int64_t>(left.count(), 60'000)));
    if (ready > 0) return;
    if (ready < 0 && errno != EINTR) fail(action);
  }
}

// False: the other side closed before the first byte.
bool receiveAll(int fd, void* data, size_t size, Deadline deadline) {
  constexpr const char* kAction = "wait for the other process";
  for (size_t got = 0; got < size;) {
    waitFor(fd, POLLIN, deadline, kAction);
    const ssize_t n = ::recv(fd, static_cast<char*>(data) + got, size - got, MSG_DONTWAIT);
    if (n == 0 && got == 0) return false;
    if (n == 0) throw Error(Errc::REMOTE_DISCONNECT, "the other process stopped inside a message");
    if (n < 0 && errno != EAGAIN && errno != EINTR) fail(kAction);
    if (n > 0) got += static_cast<size_t>(n);
  }
  return true;
}

}  // namespace

void sendFrame(int fd, const Json& message, Deadline deadline) {
  constexpr const char* kAction = "write to the other process";
  uint32_t length = 0;
  std::vector<uint8_t> frame(sizeof length);
  Json::to_cbor(message, frame);  // behind the length
  length = static_cast<uint32_t>(frame.size() - sizeof length);
  std::memcpy(frame.data(), &length, sizeof length);
  for (size_t sent = 0; sent < frame.size();) {
    waitFor(fd, POLLOUT, deadline, kAction);
    const ssize_t n =
        ::send(fd, frame.data() + sent, frame.size() - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) fail(kAction);
    if (n > 0) sent += static_cast<size_t>(n);
  }
}

std::optional<Json> receiveFrame(int fd, Deadline deadline) {
  uint32_t length = 0;
  if (!receiveAll(fd, &length, sizeof length, deadline)) return std::nullopt;
  if (length > kLargestFrame)
    throw Error(Errc::LIMIT,
                "a message of " + std::to_string(length) + " bytes from the other process");
  std::vector<uint8_t> body(length);
  if (!receiveAll(fd, body.data(), body.size(), deadline)) return std::nullopt;
  return Json::from_cbor(body);
}

}  // namespace nixl::bench
