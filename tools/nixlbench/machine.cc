#include "nixlbench/machine.h"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

namespace nixl::bench {

namespace {

std::string cpuModel() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0 || line.rfind("CPU part", 0) == 0)
      return line.substr(std::min(line.find(':') + 2, line.size()));
  return "unknown";
}

// Those of the affinity mask, fewer where a container has a quota.
unsigned usableCores() {
  cpu_set_t set;
  unsigned cores = ::sched_getaffinity(0, sizeof set, &set) == 0
                       ? static_cast<unsigned>(CPU_COUNT(&set))
                       : static_cast<unsigned>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN)));
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (file >> quota >> period && quota > 0 && period > 0)  // "max 100000" is no number
    cores = std::min(cores, static_cast<unsigned>(std::ceil(quota / period)));
  return cores;
}

}  // namespace

Machine describeMachine() {
  Machine m;
  m.cpu = cpuModel();
  m.cores = usableCores();
  m.memory = static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
             static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  utsname names{};
  if (::uname(&names) == 0)
    m.kernel = std::string(names.sysname) + ' ' + names.release + ' ' + names.machine;
  if (::getloadavg(&m.load, 1) != 1) m.load = 0;
  return m;
}

}  // namespace nixl::bench
