#include "base/log.h"

#include <errno.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

namespace nixl::base {
namespace {

// Starts each test as a process starts: the level is not read yet. Captures stderr by descriptor.
class Log : public testing::Test {
 protected:
  Log() { start(nullptr); }
  ~Log() override { start(nullptr); }

  void start(const char* level) {
    if (level)
      setenv("NIXL_LOG_LEVEL", level, 1);
    else
      unsetenv("NIXL_LOG_LEVEL");
    detail::log_level = detail::kLogLevelUnread;
  }

  template <typename Action>
  std::string captured(Action action) {
    testing::internal::CaptureStderr();
    action();
    return testing::internal::GetCapturedStderr();
  }
};

size_t lines(const std::string& text) {
  return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
}

TEST_F(Log, LooksAsGlogDoes) {
  std::string text = captured([] { NIXL_LOG_ERROR("open \"{}\": {}", "a", 13); });
  int month, day, hour, minute, second, us, thread, line, length = 0;
  sscanf(text.c_str(), "E%2d%2d %2d:%2d:%2d.%6d %d log_test.cc:%d] open \"a\": 13%n", &month, &day,
         &hour, &minute, &second, &us, &thread, &line, &length);
  EXPECT_EQ(text.substr(static_cast<size_t>(length)), "\n") << text;
  EXPECT_EQ(thread, gettid());
}

TEST_F(Log, ShowsLocalTime) {
  time_t before = time(nullptr);
  std::string text = captured([] { NIXL_LOG_WARN("now"); });
  time_t after = time(nullptr);
  auto clock = [](time_t when) {
    char shown[32];
    tm local;
    strftime(shown, sizeof(shown), "W%m%d %H:%M:%S.", localtime_r(&when, &local));
    return std::string(shown);
  };
  EXPECT_TRUE(text.find(clock(before)) == 0 || text.find(clock(after)) == 0) << text;
}

TEST_F(Log, ShowsWarningsByDefault) {
  EXPECT_TRUE(logEnabled(LogLevel::WARN));
  EXPECT_FALSE(logEnabled(LogLevel::INFO));
}

TEST_F(Log, TakesItsLevelInAnyCase) {
  start("dEbUg");
  EXPECT_TRUE(logEnabled(LogLevel::DEBUG));
  EXPECT_FALSE(logEnabled(LogLevel::TRACE));
  start("FATAL");
  EXPECT_EQ(captured([] { NIXL_LOG_ERROR("hidden"); }), "");
  EXPECT_EQ(lines(captured([] { NIXL_LOG_FATAL("shown, and the program goes on"); })), 1u);
}

TEST_F(Log, WarnsOnceOfALevelThatItDoesNotKnow) {
  start("LOUD");
  std::string text = captured([] {
    NIXL_LOG_INFO("hidden");
    NIXL_LOG_WARN("shown");
  });
  EXPECT_EQ(lines(text), 2u) << text;
  EXPECT_NE(text.find("NIXL_LOG_LEVEL is \"LOUD\"; must be TRACE, DEBUG, INFO, WARN, ERROR or "
                      "FATAL; using WARN"),
            std::string::npos)
      << text;
}

TEST_F(Log, EvaluatesNothingWhenOff) {
  int evaluated = 0;
  NIXL_LOG_DEBUG("{}", ++evaluated);
  EXPECT_EQ(evaluated, 0);
}

TEST_F(Log, KeepsAMessageOnOneLine) {
  std::string text =
      captured([] { NIXL_LOG_WARN("peer \"{}\"", "a\nE0101 forged\x1b[2J\r\t\xc3\xa4"); });
  EXPECT_EQ(lines(text), 1u);
  EXPECT_NE(text.find("a\\nE0101 forged\\x1b[2J\\x0d\t\xc3\xa4\""), std::string::npos) << text;
}

TEST_F(Log, LeavesErrnoAlone) {
  errno = ENOENT;
  captured([] { NIXL_LOG_WARN("a message"); });
  EXPECT_EQ(errno, ENOENT);
}

TEST_F(Log, CountsWhatItHoldsBack) {
  auto warn = [](double seconds) { NIXL_LOG_WARN_EVERY(seconds, "full of {}", "it"); };
  std::string text = captured([&] {
    warn(3600);
    for (int i = 0; i < 5; ++i) warn(3600);
  });
  EXPECT_EQ(lines(text), 1u);
  EXPECT_NE(text.find("full of it\n"), std::string::npos) << text;
}

TEST_F(Log, SaysHowManyItHeldBack) {
  LogLimiter limiter;
  uint64_t suppressed = 99;
  ASSERT_TRUE(limiter.admit(0.01, &suppressed));
  EXPECT_EQ(suppressed, 0u);
  uint64_t held_back = 0;
  while (!limiter.admit(0.01, &suppressed)) ++held_back;
  EXPECT_EQ(suppressed, held_back);

  std::string text = captured(
      [] { detail::logFormatted(LogLevel::WARN, "a/b.cc", 7, 3, "queue of {} is full", "x"); });
  EXPECT_NE(text.find("b.cc:7] queue of x is full (3 more like this were not shown)\n"),
            std::string::npos)
      << text;
}

TEST_F(Log, WritesWholeLinesFromManyThreads) {
  std::string text = captured([] {
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
      threads.emplace_back([] {
        for (int i = 0; i < 200; ++i) NIXL_LOG_WARN("{}", std::string(100, 'x'));
      });
    for (std::thread& thread : threads) thread.join();
  });
  EXPECT_EQ(lines(text), 800u);
  size_t whole = 0;
  for (size_t at = 0; (at = text.find("] " + std::string(100, 'x') + "\n", at)) != text.npos; ++at)
    ++whole;
  EXPECT_EQ(whole, 800u);
}

TEST_F(Log, WorksInAChildWhileAnotherThreadLogs) {
  std::string text = captured([] {
    std::atomic<bool> stop{false};
    std::thread other([&] {
      while (!stop) NIXL_LOG_WARN("parent");
    });
    for (int i = 0; i < 50; ++i) {
      pid_t child = fork();
      if (child == 0) {
        alarm(30);  // a child that hangs ends by a signal, and fails the test below
        NIXL_LOG_ERROR("child {}", getpid());
        _exit(0);
      }
      int status = 1;
      EXPECT_EQ(waitpid(child, &status, 0), child);
      EXPECT_EQ(status, 0);
    }
    stop = true;
    other.join();
  });
  size_t children = 0;
  for (size_t at = 0; (at = text.find("child ", at)) != std::string::npos; ++at) ++children;
  EXPECT_EQ(children, 50u);
}

// Logs from the destructor of an object that is destroyed after everything else.
struct LastWords {
  ~LastWords() { NIXL_LOG_ERROR("goodbye"); }
};

TEST(LogDeathTest, WorksWhileTheProcessExits) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(
      {
        static LastWords last;
        exit(0);
      },
      testing::ExitedWithCode(0), "goodbye");
}

}  // namespace
}  // namespace nixl::base
