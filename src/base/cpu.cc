#include "base/cpu.h"

#include <errno.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <thread>

#include "base/fd.h"

namespace nixl::base {

namespace {

// Takes what stands before `separator` off the front of the text.
std::string_view takeUntil(std::string_view& text, char separator) {
  size_t end = text.find(separator);
  std::string_view part = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return part;
}

std::optional<int64_t> number(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
  int64_t value;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<unsigned> coresFrom(std::optional<int64_t> quota, std::optional<int64_t> period) {
  if (!quota || !period || *quota <= 0 || *period <= 0) return std::nullopt;
  int64_t cores = *quota / *period + (*quota % *period != 0);
  return static_cast<unsigned>(std::min<int64_t>(cores, UINT32_MAX));
}

std::optional<unsigned> tighter(std::optional<unsigned> a, std::optional<unsigned> b) {
  if (!a || !b) return a ? a : b;
  return std::min(*a, *b);
}

// Calls limit_at(folder) for the cgroup's folder and each above it. In a container the path may be
// the host's, of which only the top is mounted: folders that are not there have no limit.
template <typename LimitAt>
std::optional<unsigned> tightestUpwards(const std::string& mount, std::string path,
                                        LimitAt limit_at) {
  std::optional<unsigned> tightest;
  while (!path.empty() && path.back() == '/') path.pop_back();
  for (;;) {
    tightest = tighter(tightest, limit_at(mount + path));
    size_t slash = path.rfind('/');
    if (slash == std::string::npos) return tightest;
    path.resize(slash);
  }
}

std::string textOf(const std::string& path) { return readFile(path).value_or(std::string()); }

std::optional<unsigned> limitV2(const std::string& folder) {
  return detail::coresFromCpuMax(textOf(folder + "/cpu.max"));
}

std::optional<unsigned> limitV1(const std::string& folder) {
  return detail::coresFromCfs(textOf(folder + "/cpu.cfs_quota_us"),
                              textOf(folder + "/cpu.cfs_period_us"));
}

// The main thread's: the caller may be a thread that its owner has pinned to one core.
unsigned coresByAffinity() {
  // The kernel refuses a set smaller than its own; machines beyond 1,024 cores exist.
  for (int cores = 1024; cores <= 1 << 20; cores *= 2) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(cores));
    if (!set) break;
    size_t size = CPU_ALLOC_SIZE(static_cast<size_t>(cores));
    int failed = sched_getaffinity(getpid(), size, set) == 0 ? 0 : errno;
    int count = failed ? 0 : CPU_COUNT_S(size, set);
    CPU_FREE(set);
    if (count > 0) return static_cast<unsigned>(count);
    if (failed != EINVAL) break;
  }
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

std::optional<unsigned> detail::coresFromCpuMax(std::string_view text) {
  std::string_view quota = takeUntil(text, ' ');
  return coresFrom(number(quota), number(text));
}

std::optional<unsigned> detail::coresFromCfs(std::string_view quota, std::string_view period) {
  return coresFrom(number(quota), number(period));
}

std::optional<std::string> detail::cgroupPath(std::string_view text, std::string_view controller) {
  // "4:cpu,cpuacct:/docker/abc" in v1, "0::/docker/abc" in v2
  while (!text.empty()) {
    std::string_view line = takeUntil(text, '\n');
    takeUntil(line, ':');
    std::string_view controllers = takeUntil(line, ':');
    if (line.empty() || line.front() != '/') continue;
    if (controllers.empty()) {
      if (controller.empty()) return std::string(line);
      continue;
    }
    while (!controllers.empty()) {
      if (takeUntil(controllers, ',') == controller) return std::string(line);
    }
  }
  return std::nullopt;
}

std::optional<unsigned> detail::coresFromCgroups(std::string_view cgroups,
                                                 const std::string& mount) {
  std::optional<unsigned> tightest;
  if (auto path = cgroupPath(cgroups, "")) {
    for (const char* hierarchy : {"", "/unified"})
      tightest = tighter(tightest, tightestUpwards(mount + hierarchy, *path, limitV2));
  }
  if (auto path = cgroupPath(cgroups, "cpu")) {
    for (const char* hierarchy : {"/cpu", "/cpu,cpuacct"})
      tightest = tighter(tightest, tightestUpwards(mount + hierarchy, *path, limitV1));
  }
  return tightest;
}

unsigned usableCores() {
  static const unsigned cores = [] {
    unsigned usable = coresByAffinity();
    if (auto quota = detail::coresFromCgroups(textOf("/proc/self/cgroup"), "/sys/fs/cgroup"))
      usable = std::min(usable, *quota);
    return std::max(1u, usable);
  }();
  return cores;
}

}  // namespace nixl::base
