#include "nixlbench/process_link.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "nixlbench/frames.h"

namespace nixl::bench {

using namespace std::chrono_literals;

namespace {

// In the new process: nothing that could allocate or lock.
[[noreturn]] void becomeTarget(pid_t parent, int fd, char* const arguments[]) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() == parent && ::fcntl(fd, F_SETFD, 0) == 0) ::execv("/proc/self/exe", arguments);
  ::_exit(127);
}

}  // namespace

ProcessLink::ProcessLink(const Options& options) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
    throw Error(Errc::UNKNOWN,
                std::string("start the target process: socketpair: ") + std::strerror(errno));

  std::vector<std::string> words = {"nixlbench", "--serve", std::to_string(pair[1]), "--timeout",
                                    std::to_string(options.timeout.count())};
  if (!options.backend.empty()) words.insert(words.end(), {"--backend", options.backend});
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);

  const pid_t self = ::getpid();
  pid_ = ::fork();
  if (pid_ == 0) becomeTarget(self, pair[1], arguments.data());
  const int reason = errno;
  ::close(pair[1]);
  fd_ = pair[0];
  if (pid_ < 0) {
    ::close(fd_);
    throw Error(Errc::UNKNOWN,
                std::string("start the target process: fork: ") + std::strerror(reason));
  }
}

ProcessLink::~ProcessLink() {
  ::close(fd_);
  reap(5s);
}

std::string ProcessLink::reap(std::chrono::milliseconds patience) {
  if (pid_ < 0) return "ended before";
  const Deadline deadline = std::chrono::steady_clock::now() + patience;
  int status = 0;
  pid_t got;
  while ((got = ::waitpid(pid_, &status, WNOHANG)) == 0 &&
         std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(1ms);
  if (got == 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, &status, 0);
  }
  pid_ = -1;
  if (WIFSIGNALED(status)) return std::string("killed by ") + ::strsignal(WTERMSIG(status));
  return "exit status " + std::to_string(WEXITSTATUS(status));
}

void ProcessLink::keepAlive() {
  sendFrame(fd_, {{"do", kAlive}}, std::chrono::steady_clock::now() + 5s);
}

Json ProcessLink::exchange(const Json& request, std::chrono::milliseconds patience) {
  const Deadline deadline = std::chrono::steady_clock::now() + patience;
  try {
    sendFrame(fd_, request, deadline);
    if (std::optional<Json> answer = receiveFrame(fd_, deadline)) return *answer;
  } catch (const Error& e) {
    if (e.code() != Errc::REMOTE_DISCONNECT) throw;
  }
  throw Error(Errc::REMOTE_DISCONNECT, "the target process ended early: " + reap(1s));
}

}  // namespace nixl::bench
