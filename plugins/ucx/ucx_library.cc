#include "ucx_library.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <utility>

#include "../common/mutex.h"
#include "nixl/backend.h"

namespace nixl::ucx {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSoname = "libucp.so.0";
constexpr Version kOldest{1, 13, 0};
constexpr const char* kGetUcx =
    "install a newer one (pip install libucx-cu12), or name it in NIXL_UCX_PATH";

std::string environmentValue(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool isFile(const std::string& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

// The file itself, whatever links lead to it.
std::string real(const std::string& path) {
  std::error_code ignored;
  const fs::path found = fs::canonical(path, ignored);
  return found.empty() ? path : found.string();
}

// The libucp that a user's word means: a file, or a folder that holds one (or lib/ with one).
std::optional<std::string> resolve(const std::string& given) {
  if (isFile(given)) return given;
  for (const char* tail : {"/", "/lib/", "/libucx/lib/"})
    if (const std::string path = given + tail + kSoname; isFile(path)) return path;
  return std::nullopt;
}

Candidate inspect(const std::string& path) {
  Candidate found;
  found.path = path;
  found.version = versionOf(path);
  std::error_code ignored;
  for (const auto& entry :
       fs::directory_iterator(fs::path(path).parent_path() / "ucx", ignored))
    if (entry.path().filename().string().rfind("libuct_ib", 0) == 0) found.rdma = true;
  return found;
}

// The file says that it is older than what we can work with.
bool isTooOld(const Candidate& candidate) {
  return candidate.version != Version{} && candidate.version < kOldest;
}

Candidate inspectNamed(const std::string& given, const char* where) {
  const auto path = resolve(given);
  if (!path)
    throw BackendFailure(Errc::NOT_FOUND,
                         std::string(where) + " is \"" + given + "\"; there is no " + kSoname +
                             " there. Name that file, its folder, or the one that has it in lib/");
  const Candidate found = inspect(*path);
  if (isTooOld(found))
    throw BackendFailure(Errc::NOT_SUPPORTED, std::string(where) + " names " + found.path +
                                                  ", which is version " + found.version.text() +
                                                  "; 1.13 or newer is needed");
  return found;
}

std::vector<std::string> mappedLibraries() {
  std::vector<std::string> found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        const std::string_view path = info->dlpi_name == nullptr ? "" : info->dlpi_name;
        const std::string_view name = path.substr(path.rfind('/') + 1);
        if (name.rfind("libucp.so", 0) == 0 || name.rfind("libucp-", 0) == 0)
          static_cast<std::vector<std::string>*>(out)->emplace_back(path);
        return 0;
      },
      &found);
  return found;
}

// The folders above this plugin's file (one of them is site-packages where a wheel is installed),
// and the site-packages of the active virtual environment.
std::vector<std::string> packageRoots() {
  std::vector<std::string> roots;
  Dl_info self{};
  if (dladdr(reinterpret_cast<const void*>(&mappedLibraries), &self) != 0 &&
      self.dli_fname != nullptr) {
    fs::path dir = fs::path(real(self.dli_fname)).parent_path();
    for (int levels = 0; levels < 6 && dir.has_relative_path(); ++levels, dir = dir.parent_path())
      roots.push_back(dir.string());
  }
  if (const std::string venv = environmentValue("VIRTUAL_ENV"); !venv.empty()) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(fs::path(venv) / "lib", ignored))
      roots.push_back((entry.path() / "site-packages").string());
  }
  return roots;
}

std::vector<std::string> systemDirs() {
  std::vector<std::string> dirs;
  const std::string path = environmentValue("LD_LIBRARY_PATH");
  for (size_t from = 0; from < path.size();) {
    const size_t colon = std::min(path.find(':', from), path.size());
    if (colon > from) dirs.push_back(path.substr(from, colon - from));
    from = colon + 1;
  }
  for (const char* dir : {"/usr/local/lib", "/usr/local/lib64", "/usr/lib/x86_64-linux-gnu",
                          "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/opt/ucx/lib",
                          "/usr/local/ucx/lib"})
    dirs.emplace_back(dir);
  return dirs;
}

bool hostHasRdmaDevices() {
  std::error_code ignored;
  return !fs::is_empty("/sys/class/infiniband", ignored) && !ignored;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// Sets variables that the user did not set, while UCX reads them as it is loaded.
class TemporaryEnvironment {
 public:
  ~TemporaryEnvironment() {
    for (const char* name : ours_) ::unsetenv(name);
  }
  bool set(const char* name, const char* value) {
    if (std::getenv(name) != nullptr) return false;
    ::setenv(name, value, 0);
    ours_.push_back(name);
    return true;
  }

 private:
  std::vector<const char*> ours_;
};

template <typename Function>
void bind(void* library, const char* name, bool optional, const std::string& path,
          Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr && !optional)
    throw BackendFailure(Errc::BACKEND,
                         path + " has no " + name + "; version 1.13 or newer is needed");
}

PluginMutex g_library_mutex;
const Library* g_library NIXL_PLUGIN_GUARDED_BY(g_library_mutex) = nullptr;
std::atomic<pid_t> g_opened_by{0};     // the process that opened it
thread_local LogCapture* t_capture = nullptr;

// Never destroyed: threads of UCX may log while the process ends.
struct LogQueue {
  PluginMutex mutex;
  std::vector<LogLine> lines NIXL_PLUGIN_GUARDED_BY(mutex);
  std::atomic<bool> any{false};
  const bool users = std::getenv("UCX_LOG_FILE") != nullptr ||
                     std::getenv("UCX_LOG_LEVEL") != nullptr;  // the user reads UCX's own log
};
LogQueue& logQueue() {
  static auto& queue = *new LogQueue;
  return queue;
}
constexpr size_t kMaxLogLines = 256;

}  // namespace

std::string Version::text() const {
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(release);
}

Version versionOf(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  struct stat info {};
  void* map = MAP_FAILED;
  if (::fstat(fd, &info) == 0 && info.st_size > 0)
    map = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
  ::close(fd);
  if (map == MAP_FAILED) return {};

  // libucp holds its version as a string of its own: digits, dots, and a NUL.
  const auto size = static_cast<size_t>(info.st_size);
  const std::string_view bytes(static_cast<const char*>(map), size);
  const auto isPart = [](char c) { return (c >= '0' && c <= '9') || c == '.'; };
  Version version;
  for (size_t dot = bytes.find("1."); dot != std::string_view::npos;
       dot = bytes.find("1.", dot + 1)) {
    if (dot > 0 && isPart(bytes[dot - 1])) continue;
    size_t end = dot;
    while (end < size && isPart(bytes[end])) ++end;
    if (end >= size || bytes[end] != '\0' || end - dot > 12) continue;
    Version v;
    int used = 0;
    const std::string text(bytes.substr(dot, end - dot));
    if (std::sscanf(text.c_str(), "%u.%u.%u%n", &v.major, &v.minor, &v.release, &used) == 3 &&
        static_cast<size_t>(used) == text.size()) {
      version = v;
      break;
    }
  }
  ::munmap(map, size);
  return version;
}

SearchPlace SearchPlace::ofThisProcess(std::string_view option) {
  SearchPlace place;
  place.option = option;
  place.environment = environmentValue("NIXL_UCX_PATH");
  place.mapped = mappedLibraries();
  place.package_roots = packageRoots();
  place.system_dirs = systemDirs();
  place.rdma_devices = hostHasRdmaDevices();
  return place;
}

Candidate choose(const SearchPlace& place) {
  if (place.mapped.size() > 1)
    throw BackendFailure(Errc::NOT_ALLOWED, "two libucp are mapped in this process (" +
                                                joined(place.mapped) +
                                                "); they cannot work side by side");
  std::optional<Candidate> named;
  const char* where = "option ucx_path";
  if (!place.option.empty()) {
    named = inspectNamed(place.option, where);
  } else if (!place.environment.empty()) {
    where = "NIXL_UCX_PATH";
    named = inspectNamed(place.environment, where);
  }
  if (named && !place.mapped.empty() && real(named->path) != real(place.mapped[0]))
    throw BackendFailure(Errc::NOT_ALLOWED,
                         std::string(where) + " names " + named->path + ", but " +
                             place.mapped[0] +
                             " is mapped in this process already, and two libucp cannot work side "
                             "by side");
  if (named) return *named;
  if (!place.mapped.empty()) return inspect(place.mapped[0]);

  std::vector<Candidate> found = candidates(place);
  std::string too_old;
  std::erase_if(found, [&](const Candidate& candidate) {
    if (isTooOld(candidate))
      too_old += (too_old.empty() ? "" : ", ") + candidate.path + " (" + candidate.version.text() +
                 ")";
    return isTooOld(candidate);
  });
  if (found.empty() && !too_old.empty())
    throw BackendFailure(Errc::NOT_SUPPORTED, "found only " + too_old +
                                                  ", and version 1.13 or newer is needed; " +
                                                  kGetUcx);
  if (found.empty())
    throw BackendFailure(
        Errc::NOT_FOUND,
        std::string("found no ") + kSoname + " in " + joined(place.system_dirs) +
            " or in a libucx package beside this plugin; install your system's UCX (Debian: "
            "libucx0) or the Python package libucx-cu12, or set NIXL_UCX_PATH");
  return *std::max_element(found.begin(), found.end(),
                           [&](const Candidate& a, const Candidate& b) {
                             if (place.rdma_devices && a.rdma != b.rdma) return b.rdma;
                             return a.version < b.version;
                           });
}

std::vector<Candidate> candidates(const SearchPlace& place) {
  std::vector<Candidate> found;
  const auto consider = [&](const std::string& path) {
    if (!isFile(path)) return;
    const std::string file = real(path);
    for (const Candidate& known : found)
      if (real(known.path) == file) return;
    found.push_back(inspect(path));
  };
  const std::string& named = place.option.empty() ? place.environment : place.option;
  if (const auto path = named.empty() ? std::nullopt : resolve(named)) consider(*path);
  for (const std::string& path : place.mapped) consider(path);
  for (const std::string& dir : place.system_dirs) consider(dir + "/" + kSoname);
  for (const std::string& root : place.package_roots) consider(root + "/libucx/lib/" + kSoname);
  return found;
}

std::string whyNoLibrary() {
  {
    const PluginLock lock(g_library_mutex);
    if (g_library != nullptr) return {};
  }
  try {
    choose(SearchPlace::ofThisProcess({}));
    return {};
  } catch (const BackendFailure& failure) {
    return failure.what();
  }
}

const Library& Library::open(std::string_view option) {
  // UCX has one helper thread a process, which a child made by fork() believes to have and has not:
  // connections would be accepted by nobody.
  const pid_t opened_by = g_opened_by.load();
  if (opened_by != 0 && opened_by != ::getpid())
    throw BackendFailure(Errc::NOT_SUPPORTED,
                         "UCX was used in this process before fork(), and its helper thread did not "
                         "come along; start children with spawn or exec, or fork before the first "
                         "agent is made");
  const PluginLock lock(g_library_mutex);
  const Candidate chosen = choose(SearchPlace::ofThisProcess(option));
  if (g_library == nullptr) {
    g_library = new Library(chosen.path);  // lives as long as the process
    g_opened_by.store(::getpid());
  }
  return *g_library;
}

const Library* Library::opened() {
  const PluginLock lock(g_library_mutex);
  return g_library;
}

Library::Library(const std::string& path) : path_(path) {
  // UCX patches the functions that map and unmap memory, to keep its cache of registrations right.
  // Its way of choice ("bistro") costs up to 0.4 s. With none UCX keeps no such cache: nothing can
  // be stale, and our regions are registered once anyway.
  TemporaryEnvironment env;
  if (env.set("UCX_MEM_MMAP_HOOK_MODE", "none")) {
    hook_mode_ = "none";
    env.set("UCX_MEM_MALLOC_HOOKS", "n");
    env.set("UCX_MEM_CUDA_HOOK_MODE", "none");
  }
  // It would also take over SIGSEGV, SIGHUP and others, which are the program's.
  env.set("UCX_ERROR_SIGNALS", "");
  env.set("UCX_DEBUG_SIGNO", "0");
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr)
    throw BackendFailure(Errc::BACKEND, "cannot open " + path + ": " + ::dlerror() +
                                            "; its other libraries belong beside it: reinstall "
                                            "UCX, or name another one in NIXL_UCX_PATH");
#define NIXL_UCP_BIND(name, result, parameters) \
  bind(library, "ucp_" #name, false, path, functions_.name);
#define NIXL_UCP_BIND_OPTIONAL(name, result, parameters) \
  bind(library, "ucp_" #name, true, path, functions_.name);
  NIXL_UCP_FUNCTIONS(NIXL_UCP_BIND, NIXL_UCP_BIND_OPTIONAL)
#undef NIXL_UCP_BIND
#undef NIXL_UCP_BIND_OPTIONAL
  // libucp depends on libucs, so that its symbols are found through the same handle.
  bind(library, "ucp_context_print_info", true, path, functions_.context_print_info);
  bind(library, "ucs_status_string", false, path, functions_.status_string);
  bind(library, "ucs_log_push_handler", true, path, functions_.log_push_handler);
  bind(library, "ucs_log_pop_handler", true, path, functions_.log_pop_handler);
  functions_.get_version(&version_.major, &version_.minor, &version_.release);
  if (version_.major != 1 || version_ < kOldest)
    throw BackendFailure(Errc::NOT_SUPPORTED, path + " is version " + version_.text() +
                                                  "; 1.13 or newer is needed: " + kGetUcx);
  // One handler for the process; it lets pass what is not ours to keep.
  if (functions_.log_push_handler != nullptr) functions_.log_push_handler(&LogCapture::handle);
  abi::LibAttr attr{};
  attr.field_mask = abi::kLibAttrMaxThreadLevel;
  thread_safe_ =
      functions_.lib_query(&attr) == abi::kOk && attr.max_thread_level == abi::kThreadMulti;
}

bool anyLogLines() { return logQueue().any.load(std::memory_order_relaxed); }

std::vector<LogLine> takeLogLines() {
  LogQueue& queue = logQueue();
  const PluginLock lock(queue.mutex);
  queue.any.store(false, std::memory_order_relaxed);
  return std::exchange(queue.lines, {});
}

LogCapture::LogCapture() : outer_(t_capture) { t_capture = this; }

LogCapture::~LogCapture() { t_capture = outer_; }

std::string LogCapture::explain(std::string sentence) const {
  if (!text_.empty()) sentence += " (UCX says: " + text_ + ")";
  return sentence;
}

abi::LogResult LogCapture::handle(const char*, unsigned, const char*, abi::LogLevel level,
                                  const void*, const char* format, va_list arguments) {
  LogQueue& queue = logQueue();
  if (level > abi::kLogDiag || level == abi::kLogFatal || (t_capture == nullptr && queue.users))
    return abi::kLogContinue;
  char text[512];
  va_list copy;
  va_copy(copy, arguments);
  std::vsnprintf(text, sizeof text, format, copy);
  va_end(copy);
  if (t_capture != nullptr) {
    std::string& all = t_capture->text_;
    if (all.size() < 2048) all += (all.empty() ? "" : "; ") + std::string(text);
    return abi::kLogStop;
  }
  const PluginLock lock(queue.mutex);
  if (queue.lines.size() < kMaxLogLines) queue.lines.push_back({level, text});
  queue.any.store(true, std::memory_order_relaxed);
  return abi::kLogStop;
}

}  // namespace nixl::ucx
