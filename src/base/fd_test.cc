#include "base/fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <thread>

namespace nixl::base {
namespace {

using namespace std::chrono_literals;

std::pair<Fd, Fd> socketPair(int flags = 0) {
  int fds[2] = {-1, -1};
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0, fds), 0);
  return {Fd(fds[0]), Fd(fds[1])};
}

bool isOpen(int fd) { return fcntl(fd, F_GETFD) >= 0; }

// An empty file without a name.
Fd temporaryFile() {
  char path[] = "/tmp/nixl_fd_test_XXXXXX";
  Fd fd(mkstemp(path));
  EXPECT_TRUE(fd.valid());
  unlink(path);
  return fd;
}

TEST(Fd, ClosesWhatItOwnsOnce) {
  int number;
  {
    Fd fd = temporaryFile();
    number = fd.get();
    Fd moved = std::move(fd);
    EXPECT_FALSE(fd.valid());  // NOLINT(bugprone-use-after-move): what is tested
    EXPECT_TRUE(isOpen(number));
  }
  EXPECT_FALSE(isOpen(number));
}

TEST(Fd, IsAlwaysCloseOnExec) {
  int raw[2];
  ASSERT_EQ(pipe(raw), 0);  // without the flag
  Fd read_end(raw[0]), write_end(raw[1]);
  EXPECT_EQ(fcntl(read_end.get(), F_GETFD), FD_CLOEXEC);
  Result<Fd> copy = write_end.duplicate();
  ASSERT_TRUE(copy.has_value());
  EXPECT_EQ(fcntl(copy->get(), F_GETFD), FD_CLOEXEC);
  Result<Fd> opened = Fd::open("/dev/null", O_RDONLY);
  ASSERT_TRUE(opened.has_value());
  EXPECT_EQ(fcntl(opened->get(), F_GETFD), FD_CLOEXEC);
}

TEST(Fd, SaysWhatItCouldNotOpen) {
  Result<Fd> fd = Fd::open("/nonexistent/file", O_RDONLY);
  ASSERT_FALSE(fd.has_value());
  EXPECT_EQ(fd.error().code(), Errc::NOT_FOUND);
  EXPECT_EQ(fd.error().message(), "open \"/nonexistent/file\": No such file or directory");
}

TEST(WriteAll, AndReadAllCarryMoreThanASocketHolds) {
  for (int flags : {0, static_cast<int>(SOCK_NONBLOCK)}) {
    auto [here, there] = socketPair(flags);
    std::string sent(8 << 20, 'x');
    for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<char>(i * 31);
    std::thread writer([&, fd = there.get()] {
      Status status = writeAll(fd, sent.data(), sent.size(), Deadline::after(60s));
      EXPECT_TRUE(status.ok()) << status.message();
    });
    std::string received(sent.size(), '\0');
    Status status = readAll(here.get(), received.data(), received.size(), Deadline::after(60s));
    EXPECT_TRUE(status.ok()) << status.message();
    writer.join();
    EXPECT_TRUE(received == sent);
  }
}

TEST(WriteAll, ToAPeerThatHasGoneIsAnErrorAndNoSignal) {
  auto [here, there] = socketPair();
  there.reset();
  EXPECT_EQ(writeAll(here.get(), "abc", 3).code(), Errc::REMOTE_DISCONNECT);
}

TEST(ReadAll, SaysHowFarItCame) {
  auto [here, there] = socketPair();
  ASSERT_TRUE(writeAll(there.get(), "abc", 3).ok());
  there.reset();
  char buffer[8];
  Status status = readAll(here.get(), buffer, sizeof(buffer));
  EXPECT_EQ(status.code(), Errc::REMOTE_DISCONNECT);
  EXPECT_EQ(status.message(), "read: the other end closed after 3 of 8 bytes");
}

TEST(ReadAll, StopsAtTheDeadline) {
  auto [here, there] = socketPair(SOCK_NONBLOCK);
  char buffer[8];
  Status status = readAll(here.get(), buffer, sizeof(buffer), Deadline::after(10ms));
  EXPECT_EQ(status.code(), Errc::TIMEOUT);
  EXPECT_EQ(status.message(), "read after 0 of 8 bytes: the deadline passed");
}

TEST(PwriteAll, AndPreadAllUseTheOffset) {
  Fd fd = temporaryFile();
  ASSERT_TRUE(pwriteAll(fd.get(), "hello", 5, 100).ok());
  char buffer[5];
  ASSERT_TRUE(preadAll(fd.get(), buffer, 5, 100).ok());
  EXPECT_EQ(std::string_view(buffer, 5), "hello");
  Status status = preadAll(fd.get(), buffer, 5, 102);
  EXPECT_EQ(status.code(), Errc::PARTIAL);
  EXPECT_EQ(status.message(), "read: the file ends after 3 of 5 bytes");
}

TEST(ReadFile, ReadsFilesThatDoNotSayTheirLength) {
  Result<std::string> text = readFile("/proc/self/status");
  ASSERT_TRUE(text.has_value());
  EXPECT_NE(text->find("Pid:"), std::string::npos);
  EXPECT_EQ(readFile("/proc/self/status", 10).error().code(), Errc::LIMIT);
  EXPECT_EQ(readFile("/nonexistent").error().code(), Errc::NOT_FOUND);
}

TEST(EventFd, IsReadableFromSignalToDrain) {
  Result<EventFd> event = EventFd::create();
  ASSERT_TRUE(event.has_value());
  pollfd waiting = {event->fd(), POLLIN, 0};
  EXPECT_EQ(poll(&waiting, 1, 0), 0);
  EXPECT_FALSE(event->drain());
  event->signal();
  event->signal();
  EXPECT_EQ(poll(&waiting, 1, 0), 1);
  EXPECT_TRUE(event->drain());
  EXPECT_EQ(poll(&waiting, 1, 0), 0);
}

}  // namespace
}  // namespace nixl::base
