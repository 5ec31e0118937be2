#include "plugin/inspect.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/fd.h"
#include "plugin/error_text.h"

namespace nixl::plugin {

namespace {

constexpr size_t kMostAnswer = 1 << 20;   // bytes that a child may send
constexpr size_t kMostOutput = 600;       // bytes of what it printed that are passed on

// What a child sends: a letter, and two texts, each with its length before it.
enum Tag : char {
  kLoaded = 'L',
  kFound = 'F',    // what, value
  kUsable = 'U',
  kUnusable = 'N'  // the sentence
};

void send(int fd, Tag tag, std::string_view first = {}, std::string_view second = {}) {
  std::string record(1, tag);
  for (std::string_view text : {first, second}) {
    const auto size = static_cast<uint32_t>(text.size());
    record.append(reinterpret_cast<const char*>(&size), sizeof size).append(text);
  }
  if (!base::writeAll(fd, record.data(), record.size()).ok()) ::_exit(1);  // nobody reads it
}

// Takes one record off `bytes`; false when there is no whole one.
bool takeRecord(std::string_view& bytes, char& tag, std::string& first, std::string& second) {
  std::string_view rest = bytes;
  if (rest.empty()) return false;
  const char kind = rest[0];
  rest.remove_prefix(1);
  for (std::string* text : {&first, &second}) {
    uint32_t size;
    if (rest.size() < sizeof size) return false;
    std::memcpy(&size, rest.data(), sizeof size);
    rest.remove_prefix(sizeof size);
    if (rest.size() < size) return false;
    text->assign(rest.substr(0, size));
    rest.remove_prefix(size);
  }
  bytes = rest;
  tag = kind;
  return true;
}

// The child has said its last word.
bool isWhole(std::string_view bytes) {
  char tag = 0;
  std::string first, second;
  while (takeRecord(bytes, tag, first, second)) {
  }
  return tag == kUsable || tag == kUnusable;
}

// The whole life of the child.
[[noreturn]] void tryOut(Manager& manager, const std::string& name, int answer, int output,
                         std::chrono::milliseconds limit) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // Its end is its own affair: no core file, and no handler of the parent's.
  const rlimit none{0, 0};
  ::setrlimit(RLIMIT_CORE, &none);
  for (int number = 1; number < SIGRTMIN; ++number)
    if (number != SIGPIPE) ::signal(number, SIG_DFL);
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t all;
  sigfillset(&all);
  ::sigprocmask(SIG_UNBLOCK, &all, nullptr);
  ::alarm(static_cast<unsigned>(limit.count() / 1000 + 2));
  if (output >= 0) {
    ::dup2(output, STDOUT_FILENO);
    ::dup2(output, STDERR_FILENO);
  }

  auto plugin = manager.load(name);
  if (!plugin.has_value()) {
    send(answer, kUnusable, plugin.error().message());
    ::_exit(0);
  }
  send(answer, kLoaded);
  Status status = whyUnusable(**plugin);
  // Also when it is known to be unusable: what it finds on the way may say why.
  if (NIXL_ABI_HAS(*plugin, nixl_plugin, inspect) && (*plugin)->inspect != nullptr) {
    ErrorText error;
    Status tried;
    try {
      const int32_t code = (*plugin)->inspect(
          [](void* to, const char* what, const char* value) {
            send(*static_cast<int*>(to), kFound, readable(what == nullptr ? "" : what),
                 readable(value == nullptr ? "" : value));
          },
          &answer, error.raw());
      if (code < 0) tried = Status(Errc::NOT_FOUND, error.words());
    } catch (...) {
      tried = thrownStatus("trying out " + name);
    }
    if (status.ok()) status = tried;
  }
  if (status.ok())
    send(answer, kUsable);
  else
    send(answer, kUnusable, status.message());
  ::_exit(0);  // no handlers: they are the parent's
}

struct Child {
  PluginReport report;
  pid_t pid = -1;
  base::Fd answer;
  base::Fd output;    // what it printed
  std::string bytes;  // of the answer, so far
  bool open = false;  // there may be more
};

std::string printedBy(const Child& child) {
  char text[kMostOutput];
  const ssize_t size =
      child.output ? ::pread(child.output.get(), text, sizeof text, 0) : ssize_t{0};
  if (size <= 0) return {};
  std::string words = readable({text, static_cast<size_t>(size)});
  while (!words.empty() && (words.back() == '?' || words.back() == ' ')) words.pop_back();
  return words.empty() ? words : "; it printed: " + words;
}

std::string howItEnded(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    const char* name = ::strsignal(WTERMSIG(wait_status));
    return "crashed (" + std::string(name == nullptr ? "unknown signal" : name) + ")";
  }
  return "ended the process (exit status " + std::to_string(WEXITSTATUS(wait_status)) + ")";
}

// Reads the child's answer out, and ends it.
void conclude(Child& child, Manager& manager, std::chrono::milliseconds each) {
  const bool late = child.open;
  if (late) ::kill(child.pid, SIGKILL);
  int wait_status = 0;
  while (::waitpid(child.pid, &wait_status, 0) < 0 && errno == EINTR) {
  }

  PluginReport& report = child.report;
  std::string_view bytes = child.bytes;
  std::string first, second;
  char tag;
  bool concluded = false;
  while (takeRecord(bytes, tag, first, second)) {
    if (tag == kLoaded) report.loaded = true;
    if (tag == kFound) report.found.emplace_back(first, second);
    if (tag == kUsable) concluded = report.state.usable = true;
    if (tag == kUnusable) {
      concluded = true;
      report.state.why_unusable = first;
    }
  }
  if (!concluded) {
    const std::string doing = report.loaded ? "while it was tried out" : "while it was loaded";
    const std::string path = report.state.path.empty() ? "linked in" : report.state.path;
    report.state.why_unusable =
        "plugin " + report.state.name + " (" + path + ") " +
        (late ? "did not answer within " + std::to_string(each.count()) + " ms"
              : howItEnded(wait_status)) +
        " " + doing + printedBy(child);
  }
  // It loads without harm, as was just seen.
  if (report.loaded)
    if (auto info = manager.info(report.state.name); info.has_value()) report.info = *info;
}

}  // namespace

std::vector<PluginReport> inspectAll(Manager& manager, std::chrono::milliseconds each) {
  std::vector<Child> children;
  for (PluginState& state : manager.found()) {
    Child child;
    child.report.state = std::move(state);
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) {
      child.report.state.why_unusable = base::errnoStatus("make a pipe", errno).message();
    } else {
      child.answer = base::Fd(ends[0]);
      base::Fd theirs(ends[1]);
      child.output = base::Fd(::memfd_create("nixl-inspect", MFD_CLOEXEC));
      child.pid = ::fork();
      if (child.pid == 0)
        tryOut(manager, child.report.state.name, theirs.get(), child.output.get(), each);
      if (child.pid < 0)
        child.report.state.why_unusable =
            base::errnoStatus("start a process that tries it out", errno).message();
      child.open = child.pid > 0;
    }
    children.push_back(std::move(child));
  }

  const auto deadline = base::Deadline::after(each);
  for (;;) {
    std::vector<pollfd> waiting;
    for (const Child& child : children)
      if (child.open) waiting.push_back({child.answer.get(), POLLIN, 0});
    if (waiting.empty() || deadline.expired()) break;
    if (::poll(waiting.data(), waiting.size(), deadline.remainingMs()) < 0 && errno != EINTR) break;
    size_t next = 0;
    for (Child& child : children) {
      if (!child.open) continue;
      if (waiting[next++].revents == 0) continue;
      char buffer[4096];
      const ssize_t got = ::read(child.answer.get(), buffer, sizeof buffer);
      if (got > 0) child.bytes.append(buffer, static_cast<size_t>(got));
      // Not only its end counts: a child that another thread made meanwhile holds the pipe, too.
      if (got == 0 || (got < 0 && errno != EINTR) || child.bytes.size() > kMostAnswer ||
          isWhole(child.bytes))
        child.open = false;
    }
  }

  std::vector<PluginReport> reports;
  for (Child& child : children) {
    if (child.pid > 0) conclude(child, manager, each);
    reports.push_back(std::move(child.report));
  }
  return reports;
}

}  // namespace nixl::plugin
