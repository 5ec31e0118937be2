// What is installed: this library, Python and its packages, plugins; and what the environment says.
#include <dlfcn.h>
#include <fcntl.h>
#include <gnu/libc-version.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <sstream>

#include "nixl-info/probes.h"
#include "nixl/agent.h"

extern char** environ;  // NOLINT(readability-identifier-naming): the system's

namespace nixl::info {

namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr auto kPythonLimit = milliseconds(8000);

// One line for each: "name<TAB>value". Imports nothing but the standard library.
constexpr const char* kAskPython = R"py(
import sys
print("Python\t%s (%s)" % (sys.version.split()[0], sys.executable))
try:
    from importlib.metadata import distributions
except ImportError:
    sys.exit()
wanted = ("nixl", "nixl-cu12", "nixl-cu13", "numpy", "torch", "libucx-cu12", "libucx-cu13",
          "vllm", "sglang", "lmcache", "ai-dynamo")
seen = set()
for d in distributions():
    name = (d.metadata["Name"] or "").lower().replace("_", "-")
    if name in wanted and name not in seen:
        seen.add(name)
        print("%s\t%s" % (name, d.version))
)py";

// What a program prints; nothing where it cannot be run or takes too long.
std::string outputOf(const std::vector<std::string>& command, milliseconds limit) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return {};
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  ::posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  std::vector<char*> words;
  for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  pid_t pid = 0;
  const int failure = ::posix_spawnp(&pid, words[0], &actions, nullptr, words.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  std::string text;
  const auto deadline = Clock::now() + limit;
  while (failure == 0) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now()).count();
    pollfd waiting{ends[0], POLLIN, 0};
    const int ready = left > 0 ? ::poll(&waiting, 1, static_cast<int>(left)) : 0;
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      ::kill(pid, SIGKILL);
      break;
    }
    char buffer[4096];
    const ssize_t got = ::read(ends[0], buffer, sizeof buffer);
    if (got <= 0) break;
    text.append(buffer, static_cast<size_t>(got));
  }
  ::close(ends[0]);
  if (failure == 0)
    while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
  return text;
}

bool contains(std::string_view text, std::string_view word) {
  return text.find(word) != std::string_view::npos;
}

// The few edits that turn one word into the other, as people mistype.
size_t distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1] ? 1 : 0)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

std::string shownValue(const std::string& name, const std::string& value) {
  std::string upper = name;
  std::transform(upper.begin(), upper.end(), upper.begin(),
                 [](unsigned char c) { return std::toupper(c); });
  const bool names_a_file = upper.ends_with("_FILE") || upper.ends_with("_PATH") ||
                            upper.ends_with("_CERT") || upper.ends_with("_DIR");
  if (!names_a_file)
    for (const char* word : {"KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL"})
      if (contains(upper, word)) return "set (hidden)";
  // "http://user:password@host": of each entry of a list.
  std::string shown = value;
  for (size_t at = 0; (at = shown.find("://", at)) != std::string::npos;) {
    const size_t begin = at + 3;
    const size_t end = std::min(shown.find_first_of("/,; ", begin), shown.size());
    const size_t sign = shown.rfind('@', end);
    if (sign != std::string::npos && sign > begin && sign < end)
      shown.replace(begin, sign - begin, "(hidden)");
    at = begin;
  }
  return shown;
}

std::vector<std::string> closeTo(const std::string& name, const std::vector<std::string>& known) {
  std::vector<std::string> close;
  size_t least = std::max<size_t>(3, name.size() / 5);
  for (const std::string& other : known) {
    const size_t edits = distance(name, other);
    if (edits < least) {
      least = edits;
      close = {other};
    }
  }
  return close;
}

void probeVersions(const Machine& machine, Section& out) {
  out.add("nixl", versionText());
  Dl_info library{};
  std::error_code ignored;
  if (::dladdr(reinterpret_cast<const void*>(&versionText), &library) != 0 &&
      library.dli_fname != nullptr)
    out.add("library", std::filesystem::weakly_canonical(library.dli_fname, ignored).string());
#if defined(__clang__)
  out.add("compiler", "clang " __clang_version__);
#else
  out.add("compiler", "g++ " __VERSION__);
#endif
  out.add("C library", std::string("glibc ") + ::gnu_get_libc_version());
  const std::string python = machine.python.empty() ? "python3" : machine.python;
  const std::string told = outputOf({python, "-c", kAskPython}, kPythonLimit);
  if (told.empty()) {
    out.add("Python", "no answer from " + python);
    return;
  }
  std::map<std::string, std::string> all;
  std::istringstream lines(told);
  for (std::string line; std::getline(lines, line);)
    if (const size_t tab = line.find('\t'); tab != std::string::npos)
      all[line.substr(0, tab)] = line.substr(tab + 1);
  out.add("Python", all["Python"]);
  all.erase("Python");
  for (const auto& [name, version] : all) {
    if (name == "nixl-cu12" || name == "nixl-cu13")
      out.note("package " + name, version,
               "another distribution with the same module: programs that import it do not use this "
               "library; pip uninstall " + name);
    else
      out.add("package " + name, version);
  }
}

void probeEnvironment(const Machine&, Section& out) {
  std::map<std::string, ConfigState> known;
  std::vector<std::string> names;
  for (ConfigState& state : configStates()) {
    names.push_back(state.name);
    for (const std::string& alias : state.aliases) names.push_back(alias);
    known[state.name] = std::move(state);
  }
  const auto isKnown = [&](const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  for (const auto& [name, state] : known) {
    if (!state.problem.empty())
      out.wrong(state.source, state.secret ? "set (hidden)" : shownValue(name, state.value),
                state.problem);
    else if (state.source != "default")
      out.add(state.source, state.secret ? "set (hidden)" : shownValue(name, state.value));
  }
  std::vector<std::string> set;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry)
    set.emplace_back(*entry);
  std::sort(set.begin(), set.end());
  for (const std::string& entry : set) {
    const std::string name = entry.substr(0, entry.find('='));
    const std::string value = entry.size() > name.size() ? entry.substr(name.size() + 1) : "";
    if (name.rfind("NIXL_", 0) == 0 && !isKnown(name)) {
      const auto close = closeTo(name, names);
      out.note(name, shownValue(name, value),
               close.empty() ? "nothing here reads it; `nixl-info config` lists what is read"
                             : "nothing here reads it; did you mean " + close[0] + "?");
    }
    for (const char* other : {"LD_LIBRARY_PATH", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES", "PYTHONPATH",
                              "VIRTUAL_ENV", "http_proxy", "https_proxy", "no_proxy"})
      if (name == other) out.add(name, shownValue(name, value));
  }
}

void probePlugins(const Machine& machine, Section& out) {
  const PluginSearch search = pluginSearch();
  if (search.problem.empty())
    out.add("folder", search.folder + (search.chosen ? " (NIXL_PLUGIN_DIR)" : ""));
  else
    out.wrong("folder", search.folder, search.problem);
  for (const PluginState& missing : search.missing)
    out.wrong(missing.name, "missing: there is no " + missing.path,
              search.chosen ? "unset NIXL_PLUGIN_DIR, or let it name the folder that has this file"
                            : "reinstall nixl");
  const std::vector<std::string> wanted = AgentConfig().backends;
  for (const PluginReport& report : machine.plugins) {
    const std::string& name = report.state.name;
    if (report.state.usable) {
      out.add(name, "usable");
    } else {
      // An agent that says nothing of backends asks for these.
      const bool needed = std::find(wanted.begin(), wanted.end(), name) != wanted.end();
      out.add(Fact{name, report.loaded ? "not usable" : "cannot be loaded",
                   report.state.why_unusable, needed});
    }
    for (const auto& [what, value] : report.found)
      if (what == "warning")
        out.note(name, "usable, with a warning", value);
      else
        out.add(name + " " + what, shownValue(what, value));
  }
}

std::vector<Probe> allProbes(const Machine& machine) {
  const auto with = [&machine](void (*probe)(const Machine&, Section&)) {
    return [machine, probe](Section& out) { probe(machine, out); };
  };
  std::vector<Probe> probes = {
      {"system", with(probeSystem)},           {"processors", with(probeProcessors)},
      {"memory", with(probeMemory)},           {"limits", with(probeLimits)},
      {"permissions", with(probePermissions)}, {"network", with(probeNetwork)},
      {"RDMA", with(probeRdma)},               {"GPUs", with(probeGpus)},
  };
  if (machine.saved) return probes;  // what is installed here says nothing about it
  probes.insert(probes.begin(), {"versions", with(probeVersions)});
  probes.push_back({"plugins", with(probePlugins)});
  probes.push_back({"environment", with(probeEnvironment)});
  return probes;
}

}  // namespace nixl::info
