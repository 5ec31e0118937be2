#include "base/log.h"

#include <errno.h>
#include <spdlog/formatter.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/sink.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/config.h"
#include "base/fork.h"

namespace nixl::base {

namespace {

constexpr const char* kLevelNames[] = {"TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"};
constexpr char kLevelLetters[] = "TDIWEF";

spdlog::level::level_enum toSpdlog(LogLevel level) {
  return static_cast<spdlog::level::level_enum>(level);
}
static_assert(static_cast<int>(LogLevel::TRACE) == SPDLOG_LEVEL_TRACE);
static_assert(static_cast<int>(LogLevel::FATAL) == SPDLOG_LEVEL_CRITICAL);

// Seconds from UTC to local time. localtime() takes a lock, which another thread may hold when the
// process forks; the child would wait for it for ever. So it is asked once in a quarter of an hour
// (clocks change at quarters), never in a child, and the answer is kept.
class LocalTime {
 public:
  int64_t offset(int64_t now) noexcept {
    const int64_t quarter = now / 900;
    int64_t known = known_.load(std::memory_order_relaxed);
    if (known != 0 && (known >> kOffsetBits == quarter || forkGeneration() != first_generation_))
      return (known & kOffsetMask) - kOffsetBias;

    time_t seconds = static_cast<time_t>(now);
    tm local = {};
    localtime_r(&seconds, &local);
    known_.store(quarter << kOffsetBits | (local.tm_gmtoff + kOffsetBias),
                 std::memory_order_relaxed);
    return local.tm_gmtoff;
  }

 private:
  static constexpr int kOffsetBits = 18;
  static constexpr int64_t kOffsetMask = (1 << kOffsetBits) - 1;
  static constexpr int64_t kOffsetBias = 1 << (kOffsetBits - 1);  // more than a day of seconds

  const uint64_t first_generation_ = forkGeneration();
  std::atomic<int64_t> known_{0};  // quarter and biased offset in one
};

LocalTime& localTime() {
  static auto& instance = *new LocalTime;
  return instance;
}

// "E1121 06:34:27.716284 4711 file.cc:42] message". Holds no state, so that threads need no lock.
class GlogFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& line) override {
    using namespace std::chrono;
    const int64_t us = duration_cast<microseconds>(message.time.time_since_epoch()).count();
    const int64_t utc = us / 1'000'000;
    const int64_t local = utc + localTime().offset(utc);
    const year_month_day date{floor<days>(sys_seconds(seconds(local)))};
    const int64_t second = local % 86'400;
    // Not message.thread_id: spdlog remembers it per thread, and a child would show its parent's.
    const long thread = syscall(SYS_gettid);
    const char* file = message.source.filename ? message.source.filename : "?";
    if (const char* slash = std::strrchr(file, '/')) file = slash + 1;

    fmt::format_to(fmt::appender(line), "{}{:02}{:02} {:02}:{:02}:{:02}.{:06} {} {}:{}] ",
                   kLevelLetters[message.level], static_cast<unsigned>(date.month()),
                   static_cast<unsigned>(date.day()), second / 3600, second / 60 % 60, second % 60,
                   us % 1'000'000, thread, file, message.source.line);
    appendPrintable(std::string_view(message.payload.data(), message.payload.size()), line);
    line.push_back('\n');
  }

  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<GlogFormatter>();
  }

 private:
  // A message may quote what a peer sent: it cannot start a line of its own, nor steer a terminal.
  static void appendPrintable(std::string_view text, spdlog::memory_buf_t& line) {
    for (char c : text) {
      auto byte = static_cast<unsigned char>(c);
      if (c == '\n')
        fmt::format_to(fmt::appender(line), "\\n");
      else if ((byte < 0x20 && c != '\t') || byte == 0x7f)
        fmt::format_to(fmt::appender(line), "\\x{:02x}", byte);
      else
        line.push_back(c);
    }
  }
};

void writeToStderr(const char* text, size_t length) noexcept {
  while (length > 0) {
    ssize_t n = write(STDERR_FILENO, text, length);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;  // there is nobody left to tell
    text += n;
    length -= static_cast<size_t>(n);
  }
}

// spdlog's own stderr sinks lock, and a child after fork() would inherit the lock as it stood.
class StderrSink final : public spdlog::sinks::sink {
 public:
  void log(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_.format(message, line);
    writeToStderr(line.data(), line.size());
  }
  void flush() override {}
  void set_pattern(const std::string&) override {}
  void set_formatter(std::unique_ptr<spdlog::formatter>) override {}

 private:
  GlogFormatter formatter_;
};

// Leaked: destructors of other static objects may log after ours would have run.
spdlog::logger& logger() {
  static auto& instance = *[] {
    auto* made = new spdlog::logger("nixl", std::make_shared<StderrSink>());
    made->set_level(spdlog::level::trace);  // logEnabled() has decided already
    return made;
  }();
  return instance;
}

// Made while the library loads, for the sake of children as above.
[[maybe_unused]] const bool kReady = [] {
  logger();
  localTime().offset(static_cast<int64_t>(time(nullptr)));
  return true;
}();

}  // namespace

namespace detail {

std::atomic<int> log_level{kLogLevelUnread};

int readLogLevel() noexcept {
  int level = static_cast<int>(LogLevel::WARN);
  std::string problem;
  try {
    Result<std::string> word = configEnum("NIXL_LOG_LEVEL");
    if (!word.has_value()) problem = word.error().message();
    for (int i = 0; word.has_value() && i < static_cast<int>(std::size(kLevelNames)); ++i)
      if (*word == kLevelNames[i]) level = i;
  } catch (const std::exception&) {
    // Out of memory: the default will do.
  }

  int unread = kLogLevelUnread;
  if (!log_level.compare_exchange_strong(unread, level)) return unread;  // another thread was first
  if (!problem.empty()) NIXL_LOG_WARN("{}; using WARN", problem);
  return level;
}

void logLine(LogLevel level, const char* file, int line, uint64_t suppressed,
             fmt::string_view format, fmt::format_args arguments) noexcept {
  const int saved = errno;
  try {
    fmt::memory_buffer text;
    fmt::vformat_to(fmt::appender(text), format, arguments);
    if (suppressed > 0)
      fmt::format_to(fmt::appender(text), " ({} more like this were not shown)", suppressed);
    logger().log(spdlog::source_loc{file, line, ""}, toSpdlog(level),
                 spdlog::string_view_t(text.data(), text.size()));
  } catch (...) {
    writeToStderr(format.data(), format.size());  // what can be said without memory
    writeToStderr("\n", 1);
  }
  errno = saved;
}

}  // namespace detail

void setLogLevel(LogLevel level) noexcept {
  detail::log_level.store(static_cast<int>(level), std::memory_order_relaxed);
}

bool LogLimiter::admit(double seconds, uint64_t* suppressed) noexcept {
  const uint64_t now = nowNs();
  uint64_t next = next_ns_.load(std::memory_order_relaxed);
  const uint64_t after = now + static_cast<uint64_t>(seconds > 0 ? seconds * 1e9 : 0);
  if (now < next || !next_ns_.compare_exchange_strong(next, after, std::memory_order_relaxed)) {
    suppressed_.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  *suppressed = suppressed_.exchange(0, std::memory_order_relaxed);
  return true;
}

}  // namespace nixl::base
