// The machine itself: system, processors, memory, what this process may do.
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>

#include "common/sizes.h"
#include "nixl-info/probes.h"

namespace nixl::info {

namespace {

constexpr uint64_t kSmallSharedMemory = 256ull << 20;  // less hinders processes of one host
constexpr uint64_t kSmallLock = 1ull << 30;            // less hinders devices that pin memory
constexpr uint64_t kTinyLock = 1ull << 20;             // less than any system gives by itself
constexpr uint64_t kFewFiles = 4096;

std::string limitText(rlim_t limit, bool bytes) {
  if (limit == RLIM_INFINITY) return "unlimited";
  return bytes ? sizeText(limit) : std::to_string(limit);
}

std::string container(const Files& files) {
  if (files.exists("/.dockerenv")) return "yes (docker)";
  if (files.exists("/run/.containerenv")) return "yes (podman)";
  if (std::getenv("KUBERNETES_SERVICE_HOST") != nullptr) return "yes (kubernetes)";
  if (const char* name = std::getenv("container"); name != nullptr && *name != '\0')
    return "yes (" + std::string(name) + ")";
  const std::string groups = files.text("/proc/1/cgroup").value_or("");
  for (const char* word : {"docker", "kubepods", "containerd", "lxc", "libpod"})
    if (groups.find(word) != std::string::npos) return "yes (" + std::string(word) + ")";
  return "no sign of one";
}

// The tightest of this process's cgroups; 0: no quota.
double coresOfQuota(const Files& files) {
  double least = 0;
  const auto consider = [&](double cores) {
    if (cores > 0 && (least == 0 || cores < least)) least = cores;
  };
  for (const std::string& text : files.cgroupLimits("cpu.max", "cpu/cpu.cfs_quota_us")) {
    double quota = 0, period = 100000;
    std::istringstream words(text);  // "150000 100000"; "max 100000" is no number
    if (words >> quota && quota > 0) {
      words >> period;
      consider(quota / period);
    }
  }
  return least;
}

uint64_t memoryLimit(const Files& files) {
  uint64_t least = 0;
  for (const std::string& text : files.cgroupLimits("memory.max", "memory/memory.limit_in_bytes")) {
    const uint64_t bytes = leadingNumber(text);
    // v1 says "no limit" as a number close to 2^63.
    if (bytes > 0 && bytes < (1ull << 60) && (least == 0 || bytes < least)) least = bytes;
  }
  return least;
}

// Of this process, a bit each.
uint64_t capabilities(const Files& files) {
  const std::string status = files.text("/proc/self/status").value_or("");
  return std::strtoull(Files::valueOf(status, "CapEff").value_or("0").c_str(), nullptr, 16);
}

// The capabilities that matter here, by their numbers in the kernel.
constexpr std::pair<unsigned, const char*> kCapabilities[] = {
    {14, "IPC_LOCK"}, {19, "SYS_PTRACE"}, {21, "SYS_ADMIN"}, {23, "SYS_NICE"}, {24, "SYS_RESOURCE"},
    {12, "NET_ADMIN"}, {13, "NET_RAW"}, {10, "NET_BIND_SERVICE"}};

}  // namespace

uint64_t leadingNumber(const std::string& text) { return std::strtoull(text.c_str(), nullptr, 10); }

std::string sizeText(uint64_t bytes) { return tools::formatSize(bytes); }

std::string counted(uint64_t count, const std::string& one, const std::string& many) {
  return std::to_string(count) + " " + (count == 1 ? one : many);
}

void probeSystem(const Machine& machine, Section& out) {
  const Files& files = machine.files;
  const std::string release = files.text("/etc/os-release").value_or(
      files.text("/usr/lib/os-release").value_or(""));
  out.add("distribution", Files::valueOf(release, "PRETTY_NAME").value_or("unknown"));
  if (machine.saved) {
    out.add("kernel", files.textOrWhy("/proc/sys/kernel/osrelease"));
  } else {
    utsname names{};
    ::uname(&names);
    out.add("kernel", std::string(names.sysname) + " " + names.release + " " + names.machine);
    int major = 0, minor = 0;
    if (std::sscanf(names.release, "%d.%d", &major, &minor) == 2 &&
        (major < 5 || (major == 5 && minor < 15)))
      out.note("kernel age", std::to_string(major) + "." + std::to_string(minor),
               "5.15 or newer has the faster ways to move data between processes and to files");
  }
  out.add("container", container(files));
  const std::string cpu = files.text("/proc/cpuinfo").value_or("");
  if (cpu.find(" hypervisor") != std::string::npos) {
    const std::string vendor = files.text("/sys/class/dmi/id/sys_vendor").value_or("unknown maker");
    out.add("virtual machine", "yes (" + vendor + ")");
  }
  if (files.text("/proc/self/status") == std::nullopt)
    out.note("/proc", files.textOrWhy("/proc/self/status"),
             "much of what follows is unknown without it; mount it (mount -t proc proc /proc)");
}

void probeProcessors(const Machine& machine, Section& out) {
  const Files& files = machine.files;
  const std::string cpuinfo = files.text("/proc/cpuinfo").value_or("");
  std::string model = Files::valueOf(cpuinfo, "model name").value_or("");
  if (model.empty()) model = Files::valueOf(cpuinfo, "CPU part").value_or("unknown");
  out.add("model", model);
  if (machine.saved) return;

  const long online = ::sysconf(_SC_NPROCESSORS_ONLN);
  cpu_set_t set;
  const long affinity =
      ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : online;
  const double quota = coresOfQuota(files);
  out.add("online", std::to_string(online));
  out.add("affinity of this process", std::to_string(affinity));
  if (quota > 0) {
    char text[32];
    std::snprintf(text, sizeof text, "%.2g", quota);
    out.add("quota of its cgroups", text);
  } else {
    out.add("quota of its cgroups", "none");
  }
  const auto usable = static_cast<long>(
      quota > 0 ? std::min<double>(static_cast<double>(affinity), std::ceil(quota))
                : static_cast<double>(affinity));
  if (usable < 2)
    out.note("usable", "1",
             "whatever polls and whatever works take turns here; give the process 2 cores or more");
  else
    out.add("usable", std::to_string(usable));
  out.add("NUMA nodes", files.textOrWhy("/sys/devices/system/node/online"));
  if (const auto governor =
          files.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")) {
    if (*governor == "performance")
      out.add("frequency governor", *governor);
    else
      out.note("frequency governor", *governor,
               "times vary less with: sudo cpupower frequency-set -g performance");
  }
  double load[1] = {0};
  if (::getloadavg(load, 1) == 1) {
    char text[32];
    std::snprintf(text, sizeof text, "%.2f", load[0]);
    out.add("load of the last minute", text);
  }
}

void probeMemory(const Machine& machine, Section& out) {
  const Files& files = machine.files;
  const std::string info = files.text("/proc/meminfo").value_or("");
  if (info.empty()) out.add("total", files.textOrWhy("/proc/meminfo"));
  const auto kilobytes = [&](const char* key) {
    return leadingNumber(Files::valueOf(info, key).value_or("0")) << 10;
  };
  if (!info.empty()) {
    out.add("total", sizeText(kilobytes("MemTotal")));
    out.add("available", sizeText(kilobytes("MemAvailable")));
  }
  const uint64_t limit = memoryLimit(files);
  out.add("limit of its cgroups", limit == 0 ? "none" : sizeText(limit));
  if (!info.empty()) {
    const uint64_t pages = leadingNumber(Files::valueOf(info, "HugePages_Total").value_or("0"));
    const uint64_t free = leadingNumber(Files::valueOf(info, "HugePages_Free").value_or("0"));
    out.add("huge pages", std::to_string(pages) + " of " + sizeText(kilobytes("Hugepagesize")) +
                              ", " + std::to_string(free) + " free");
  }
  out.add("transparent huge pages", files.textOrWhy("/sys/kernel/mm/transparent_hugepage/enabled"));

  struct statvfs shm {};
  if (::statvfs(files.at("/dev/shm").c_str(), &shm) != 0) {
    out.wrong("/dev/shm", "not there",
              "processes of one host share memory there; mount it (mount -t tmpfs tmpfs /dev/shm)");
    return;
  }
  const uint64_t total = static_cast<uint64_t>(shm.f_blocks) * shm.f_frsize;
  const uint64_t free = static_cast<uint64_t>(shm.f_bavail) * shm.f_frsize;
  const std::string text = sizeText(total) + ", " + sizeText(free) + " free";
  if (total < kSmallSharedMemory)
    out.note("/dev/shm", text,
             "too small for buffers that processes share: start the container with --shm-size=1g, "
             "in Kubernetes mount an emptyDir with medium Memory there, or as root: mount -o "
             "remount,size=50% /dev/shm");
  else if (free < total / 20)
    out.note("/dev/shm", text,
             "nearly full: remove what ended processes left behind there (ls -l /dev/shm)");
  else if (::access(files.at("/dev/shm").c_str(), W_OK) != 0)
    out.note("/dev/shm", text + ", not writable",
             "processes of one host cannot share memory: as root, chmod 1777 /dev/shm");
  else
    out.add("/dev/shm", text);
}

void probeLimits(const Machine& machine, Section& out) {
  if (machine.saved) return;
  struct Row {
    const char* name;
    __rlimit_resource_t what;
    bool bytes;
  };
  const bool may_lock = capabilities(machine.files) >> 14 & 1u;  // IPC_LOCK: no limit holds
  for (const Row& row : {Row{"memlock", RLIMIT_MEMLOCK, true}, Row{"nofile", RLIMIT_NOFILE, false},
                         Row{"nproc", RLIMIT_NPROC, false}, Row{"as", RLIMIT_AS, true},
                         Row{"core", RLIMIT_CORE, true}}) {
    rlimit limit{};
    if (::getrlimit(row.what, &limit) != 0) continue;
    std::string text = limitText(limit.rlim_cur, row.bytes);
    if (limit.rlim_max != limit.rlim_cur)
      text += " (at most " + limitText(limit.rlim_max, row.bytes) + ")";
    const bool needed = hasRdmaDevices(machine.files) || hasGpus(machine.files);
    if (row.what == RLIMIT_MEMLOCK && !may_lock &&
        limit.rlim_cur < (needed ? kSmallLock : kTinyLock)) {
      const std::string hint =
          "network and GPU devices pin registered memory, and fail beyond this: ulimit -l "
          "unlimited, memlock in /etc/security/limits.conf, LimitMEMLOCK=infinity in a systemd "
          "unit, or --ulimit memlock=-1 for a container";
      out.add(Fact{row.name, text, hint, needed});
    } else if (row.what == RLIMIT_NOFILE && limit.rlim_cur < kFewFiles &&
               limit.rlim_cur < limit.rlim_max) {
      out.note(row.name, text, "each peer takes several descriptors; raise it: ulimit -n " +
                                   limitText(limit.rlim_max, false));
    } else if (row.what == RLIMIT_AS && limit.rlim_cur != RLIM_INFINITY) {
      out.note(row.name, text,
               "registered memory and libraries count; lift it: ulimit -v unlimited");
    } else {
      out.add(row.name, text);
    }
  }
}

void probePermissions(const Machine& machine, Section& out) {
  const Files& files = machine.files;
  const std::string status = files.text("/proc/self/status").value_or("");
  if (!machine.saved)
    out.add("user", std::to_string(::geteuid()) + (::geteuid() == 0 ? " (root)" : ""));
  const uint64_t mask = capabilities(files);
  std::string names;
  for (const auto& [number, name] : kCapabilities)
    if (mask >> number & 1u) names += (names.empty() ? "" : ", ") + std::string(name);
  out.add("capabilities", status.empty()  ? "unknown: /proc is hidden"
                          : names.empty() ? "none that matter here"
                                          : names);

  // Copying straight between two processes needs what a debugger needs.
  const auto scope = files.number("/proc/sys/kernel/yama/ptrace_scope");
  const bool may_trace = mask >> 19 & 1u;
  const char* const meanings[] = {"processes of one user reach each other",
                                  "only parents reach their children",
                                  "only with the capability SYS_PTRACE", "nobody, until a reboot"};
  if (!scope) {
    out.add("ptrace_scope", files.exists("/proc/sys/kernel")
                                ? "none (no Yama): processes of one user reach each other"
                                : "unknown: /proc is hidden");
  } else {
    const std::string text = std::to_string(*scope) + ": " +
                             (*scope >= 0 && *scope <= 3 ? meanings[*scope] : "unknown to us");
    if (*scope == 0 || (may_trace && *scope < 3))
      out.add("ptrace_scope", text);
    else
      out.note("ptrace_scope", text,
               "copies between processes of this host cannot go straight from one to the other, "
               "and are slower: sudo sysctl kernel.yama.ptrace_scope=0, or --cap-add SYS_PTRACE "
               "for a container");
  }

  const auto seccomp = Files::valueOf(status, "Seccomp");
  if (!seccomp)
    out.add("seccomp", "unknown");
  else if (*seccomp == "0")
    out.add("seccomp", "off");
  else
    out.add("seccomp", *seccomp == "2" ? "a filter is on; it may forbid io_uring and "
                                         "process_vm_readv"
                                       : "strict");
  if (Files::valueOf(status, "NoNewPrivs").value_or("0") == "1") out.add("no_new_privs", "on");

  const auto uring = files.number("/proc/sys/kernel/io_uring_disabled");
  if (!uring)
    out.add("io_uring", files.exists("/proc/sys/kernel")
                            ? "no switch: allowed where the kernel has it (5.1 and newer)"
                            : "unknown: /proc is hidden");
  else if (*uring == 0)
    out.add("io_uring", "allowed");
  else
    out.note("io_uring",
             *uring == 1 ? "only with a capability, or for a group" : "switched off",
             "files are read and written by other, slower ways: sudo sysctl "
             "kernel.io_uring_disabled=0");
  if (const auto port = files.number("/proc/sys/net/ipv4/ip_unprivileged_port_start"))
    out.add("unprivileged ports from", std::to_string(*port));
  if (const auto modules = files.text("/sys/kernel/security/lsm"))
    out.add("security modules", *modules);
}

}  // namespace nixl::info
