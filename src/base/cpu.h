// base/cpu.h - how many cores we may use, which in a container is not how many there are.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace nixl::base {

// The smaller of this process's affinity and its cgroups' processor quota (rounded up); at least 1.
// Read once, then remembered.
unsigned usableCores();

namespace detail {
// The parts of usableCores(), which take text and so can be tested with tables. Nothing: no limit.

// cgroup v2 cpu.max: "150000 100000" is 2 cores, "max 100000" no limit.
std::optional<unsigned> coresFromCpuMax(std::string_view text);

// cgroup v1 cpu.cfs_quota_us and cpu.cfs_period_us: a quota of -1 is no limit.
std::optional<unsigned> coresFromCfs(std::string_view quota, std::string_view period);

// The path of a v1 controller ("cpu"), or of v2 (""), in the text of /proc/self/cgroup.
std::optional<std::string> cgroupPath(std::string_view text, std::string_view controller);

// The tightest quota on the way from this process's cgroup up to the root of the hierarchy.
// `cgroups` is the text of /proc/self/cgroup, `mount` where cgroups are mounted.
std::optional<unsigned> coresFromCgroups(std::string_view cgroups, const std::string& mount);
}  // namespace detail

}  // namespace nixl::base
