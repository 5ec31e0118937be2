// base/log.h - diagnostics on stderr, switched by NIXL_LOG_LEVEL.
//
//   NIXL_LOG_WARN("peer \"{}\" did not answer within {} ms", peer, ms);
//
// Arguments are evaluated and formatted only when the level is on; format strings are checked by
// the compiler. Safe from any thread, in a child after fork, and while the process exits: a line is
// one write(), with no lock, no thread and nothing that is ever destroyed. Never throws.
#pragma once

#include <fmt/format.h>

#include <atomic>
#include <cstdint>
#include <utility>

namespace nixl::base {

enum class LogLevel : int { TRACE, DEBUG, INFO, WARN, ERROR, FATAL };

namespace detail {
constexpr int kLogLevelUnread = -1;
extern std::atomic<int> log_level;

// Reads NIXL_LOG_LEVEL, once, and returns the level in force.
int readLogLevel() noexcept;

void logLine(LogLevel level, const char* file, int line, uint64_t suppressed,
             fmt::string_view format, fmt::format_args arguments) noexcept;

template <typename... Args>
void logFormatted(LogLevel level, const char* file, int line, uint64_t suppressed,
                  fmt::format_string<Args...> format, Args&&... args) noexcept {
  logLine(level, file, line, suppressed, format, fmt::make_format_args(args...));
}
}  // namespace detail

// One atomic load. Ask it before work that only a log line needs.
inline bool logEnabled(LogLevel level) noexcept {
  int in_force = detail::log_level.load(std::memory_order_relaxed);
  if (in_force == detail::kLogLevelUnread) [[unlikely]]
    in_force = detail::readLogLevel();
  return static_cast<int>(level) >= in_force;
}

// From now on, whatever NIXL_LOG_LEVEL says.
void setLogLevel(LogLevel level) noexcept;

// Lets one line through in a while, and counts the others. One per call site, made by the macros.
class LogLimiter {
 public:
  constexpr LogLimiter() = default;

  // True if a line may be written now; *suppressed is then how many were not since the last one.
  bool admit(double seconds, uint64_t* suppressed) noexcept;

 private:
  std::atomic<uint64_t> next_ns_{0};
  std::atomic<uint64_t> suppressed_{0};
};

}  // namespace nixl::base

#define NIXL_LOG_AT(level, ...)                                                      \
  do {                                                                               \
    if (::nixl::base::logEnabled(level))                                             \
      ::nixl::base::detail::logFormatted(level, __FILE__, __LINE__, 0, __VA_ARGS__); \
  } while (false)

#define NIXL_LOG_AT_EVERY(level, seconds, ...)                                           \
  do {                                                                                   \
    static constinit ::nixl::base::LogLimiter nixl_log_limiter;                          \
    uint64_t nixl_log_suppressed = 0;                                                    \
    if (::nixl::base::logEnabled(level) &&                                               \
        nixl_log_limiter.admit((seconds), &nixl_log_suppressed))                         \
      ::nixl::base::detail::logFormatted(level, __FILE__, __LINE__, nixl_log_suppressed, \
                                         __VA_ARGS__);                                   \
  } while (false)

#define NIXL_LOG_TRACE(...) NIXL_LOG_AT(::nixl::base::LogLevel::TRACE, __VA_ARGS__)
#define NIXL_LOG_DEBUG(...) NIXL_LOG_AT(::nixl::base::LogLevel::DEBUG, __VA_ARGS__)
#define NIXL_LOG_INFO(...) NIXL_LOG_AT(::nixl::base::LogLevel::INFO, __VA_ARGS__)
#define NIXL_LOG_WARN(...) NIXL_LOG_AT(::nixl::base::LogLevel::WARN, __VA_ARGS__)
#define NIXL_LOG_ERROR(...) NIXL_LOG_AT(::nixl::base::LogLevel::ERROR, __VA_ARGS__)
// FATAL is a level, not an exit: a library does not end its user's process.
#define NIXL_LOG_FATAL(...) NIXL_LOG_AT(::nixl::base::LogLevel::FATAL, __VA_ARGS__)

// At most one line in `seconds` from this place in the code; it says how many it stands for.
#define NIXL_LOG_INFO_EVERY(seconds, ...) \
  NIXL_LOG_AT_EVERY(::nixl::base::LogLevel::INFO, seconds, __VA_ARGS__)
#define NIXL_LOG_WARN_EVERY(seconds, ...) \
  NIXL_LOG_AT_EVERY(::nixl::base::LogLevel::WARN, seconds, __VA_ARGS__)
#define NIXL_LOG_ERROR_EVERY(seconds, ...) \
  NIXL_LOG_AT_EVERY(::nixl::base::LogLevel::ERROR, seconds, __VA_ARGS__)
