// base/clock.h - monotonic time, and deadlines made of it.
#pragma once

#include <time.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <compare>
#include <cstdint>

namespace nixl::base {

// CLOCK_MONOTONIC in nanoseconds: the clock of std::chrono::steady_clock. Never 0.
inline uint64_t nowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

// A moment after which waiting is over, or never. A value: pass it down through every call that
// waits, so that all of them together keep to one limit.
class Deadline {
 public:
  static constexpr Deadline never() { return Deadline(kNever); }

  // From now on. Zero and less is expired at once; what does not fit the clock is never.
  template <typename Rep, typename Period>
  static Deadline after(std::chrono::duration<Rep, Period> duration) {
    if (duration <= duration.zero()) return Deadline(nowNs());
    // Compared in floating point first: milliseconds::max() overflows when cast to nanoseconds.
    if (std::chrono::duration<double>(duration).count() > kLongestSeconds) return never();
    auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count();
    return Deadline(nowNs() + static_cast<uint64_t>(ns));
  }

  static Deadline at(std::chrono::steady_clock::time_point when) {
    if (when == when.max()) return never();
    auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(when.time_since_epoch()).count();
    return Deadline(ns <= 0 ? 0 : static_cast<uint64_t>(ns));
  }

  // `when` as nowNs() counts; UINT64_MAX is never.
  static constexpr Deadline atNs(uint64_t when) { return Deadline(when); }

  constexpr bool isNever() const { return at_ns_ == kNever; }
  bool expired() const { return !isNever() && nowNs() >= at_ns_; }

  // As nowNs() counts; UINT64_MAX when never.
  constexpr uint64_t ns() const { return at_ns_; }

  // 0 once expired, UINT64_MAX when never.
  uint64_t remainingNs() const {
    if (isNever()) return kNever;
    uint64_t now = nowNs();
    return now >= at_ns_ ? 0 : at_ns_ - now;
  }

  // For poll() and epoll_wait(): -1 when never, 0 once expired, otherwise rounded up, so that who
  // sleeps for it does not wake just before the end and spin.
  int remainingMs() const {
    if (isNever()) return -1;
    uint64_t ns = remainingNs();
    uint64_t ms = ns / 1'000'000u + (ns % 1'000'000u != 0);
    return static_cast<int>(std::min<uint64_t>(ms, INT_MAX));
  }

  // The earlier one of two deadlines is the smaller one.
  auto operator<=>(const Deadline&) const = default;

 private:
  static constexpr uint64_t kNever = UINT64_MAX;
  static constexpr double kLongestSeconds = 4e9;  // 126 years, far from where nanoseconds overflow

  constexpr explicit Deadline(uint64_t at_ns) : at_ns_(at_ns) {}

  uint64_t at_ns_;
};

}  // namespace nixl::base
