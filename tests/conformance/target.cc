#include "target.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <stdexcept>
#include <thread>

namespace nixl::conformance {

namespace {

using Clock = std::chrono::steady_clock;

std::string text(const Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Bytes bytesOf(std::string_view text) {
  const auto* first = reinterpret_cast<const std::byte*>(text.data());
  return Bytes(first, first + text.size());
}

// ---- one end of it all: an agent and its area -----------------------------------------------

std::vector<Notification> collect(Agent& agent, size_t count, std::chrono::milliseconds patience) {
  std::vector<Notification> all;
  const auto deadline = Clock::now() + patience;
  while (all.size() < count && Clock::now() < deadline) {
    for (Notification& one : agent.takeNotifications()) all.push_back(std::move(one));
    if (all.size() < count) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return all;
}

std::string look(Agent& agent, const Area& area, const std::string& message, uint64_t offset,
                 const Bytes& wanted, std::chrono::milliseconds patience) {
  const auto deadline = Clock::now() + patience;
  while (Clock::now() < deadline) {
    for (const Notification& one : agent.takeNotifications()) {
      if (one.message != message)
        return "\"" + one.message + "\" came instead of \"" + message + "\"";
      const std::string wrong = difference(wanted, area.read(offset, wanted.size()));
      return wrong.empty() ? "" : "\"" + message + "\" came before its data: " + wrong;
    }
  }
  return "\"" + message + "\" did not come";
}

Errc codeOfNotify(Agent& agent, const std::string& peer, const std::string& message) {
  try {
    agent.sendNotification(peer, message);
    return Errc::OK;
  } catch (const Error& error) {
    return error.code();
  }
}

// In this process: either the case's own agent, or one of its own.
class LocalTarget final : public Target {
 public:
  LocalTarget(const BackendUnderTest& backend, const std::string& name, uint64_t size, Agent* agent)
      : Target(name),
        backend_(backend),
        area_(Area::make(backend.remote, size, backend.remote_device)) {
    if (agent == nullptr) {
      own_ = std::make_unique<Agent>(name, configOf(backend));
      agent = own_.get();
    }
    agent_ = agent;
    whole_ = area_->whole();
    memory_ = agent_->registerMemory({whole_}, backend.name.c_str());
  }
  ~LocalTarget() override {
    try {
      if (memory_) agent_->deregisterMemory(memory_);
    } catch (const Error&) {  // the case has seen to it that this is not the first time
    }
  }

  void write(uint64_t offset, const Bytes& bytes) override { area_->write(offset, bytes); }
  Bytes read(uint64_t offset, uint64_t size) override { return area_->read(offset, size); }
  std::string metadata() override { return own_ ? own_->metadata() : std::string(); }
  void load(const std::string& metadata) override {
    if (own_) own_->loadMetadata(metadata);
  }
  void deregister() override { agent_->deregisterMemory(std::exchange(memory_, {})); }
  Errc notify(const std::string& peer, const std::string& message) override {
    return codeOfNotify(*agent_, peer, message);
  }
  std::vector<Notification> notifications(size_t count) override {
    return collect(*agent_, count, backend_.patience);
  }
  std::future<std::string> expect(const std::string& message, uint64_t offset,
                                  const Bytes& wanted) override {
    return std::async(std::launch::async, [=, this] {
      return look(*agent_, *area_, message, offset, wanted, backend_.patience);
    });
  }

 private:
  const BackendUnderTest& backend_;
  std::unique_ptr<Area> area_;  // before the agent, which goes first
  std::unique_ptr<Agent> own_;  // null: the agent is the case's
  Agent* agent_ = nullptr;
  Memory memory_;
};

// ---- frames between the processes: a verb, two numbers and bytes ------------------------------

constexpr int kSocketOfChild = 99;
constexpr std::string_view kArgument = "--conformance-peer=";

struct Frame {
  char verb[16] = {};
  uint64_t a = 0, b = 0, size = 0;
};

// False at the deadline, or when the other side has gone.
bool transferAll(int socket, void* data, size_t size, bool sending, Clock::time_point deadline) {
  auto* at = static_cast<char*>(data);
  while (size > 0) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd ready{socket, static_cast<short>(sending ? POLLOUT : POLLIN), 0};
    if (left <= 0 || ::poll(&ready, 1, static_cast<int>(left)) <= 0) return false;
    const ssize_t n = sending ? ::send(socket, at, size, MSG_NOSIGNAL | MSG_DONTWAIT)
                              : ::recv(socket, at, size, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (n <= 0) return false;
    at += n;
    size -= static_cast<size_t>(n);
  }
  return true;
}

bool sendFrame(int socket, std::string_view verb, uint64_t a, uint64_t b, std::string_view bytes,
               Clock::time_point deadline) {
  Frame frame;
  verb.copy(frame.verb, sizeof frame.verb - 1);
  frame.a = a;
  frame.b = b;
  frame.size = bytes.size();
  return transferAll(socket, &frame, sizeof frame, true, deadline) &&
         transferAll(socket, const_cast<char*>(bytes.data()), bytes.size(), true, deadline);
}

bool receiveFrame(int socket, Frame* frame, std::string* bytes, Clock::time_point deadline) {
  if (!transferAll(socket, frame, sizeof *frame, false, deadline)) return false;
  bytes->resize(frame->size);
  return transferAll(socket, bytes->data(), bytes->size(), false, deadline);
}

// ---- the other process ------------------------------------------------------------------------

class Peer {
 public:
  Peer(const BackendUnderTest& backend, std::string name, uint64_t size)
      : target_(backend, std::move(name), size, nullptr) {}

  std::string answer(const Frame& frame, const std::string& bytes) {
    const std::string_view verb = frame.verb;
    if (verb == "address") return std::to_string(target_.whole().address);
    if (verb == "device") return std::to_string(target_.whole().device);
    if (verb == "write") return target_.write(frame.a, bytesOf(bytes)), "";
    if (verb == "read") return text(target_.read(frame.a, frame.b));
    if (verb == "metadata") return target_.metadata();
    if (verb == "load") return target_.load(bytes), "";
    if (verb == "deregister") return target_.deregister(), "";
    if (verb == "notify")
      return std::to_string(
          static_cast<int>(target_.notify(bytes.substr(0, frame.a), bytes.substr(frame.a))));
    if (verb == "notifications") {
      std::string all;  // length and text of agent and message, in turn
      for (const Notification& one : target_.notifications(frame.a))
        for (const std::string* part : {&one.agent, &one.message})
          all += std::to_string(part->size()) + ":" + *part;
      return all;
    }
    if (verb == "expect")
      return target_.expect(bytes.substr(0, frame.b), frame.a, bytesOf(bytes.substr(frame.b)))
          .get();
    throw std::runtime_error("no such verb: " + std::string(verb));
  }

 private:
  LocalTarget target_;
};

[[noreturn]] void servePeer(const BackendUnderTest& backend) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  Frame frame;
  std::string bytes;
  // The parent asks whenever it likes, but its end is ours.
  const auto never = Clock::now() + std::chrono::hours(1);
  std::unique_ptr<Peer> peer;
  while (receiveFrame(kSocketOfChild, &frame, &bytes, never)) {
    std::string answer;
    bool good = true;
    try {
      if (std::string_view(frame.verb) == "start")
        peer = std::make_unique<Peer>(backend, bytes, frame.a);
      else
        answer = peer->answer(frame, bytes);
    } catch (const std::exception& error) {
      good = false;
      answer = error.what();
    }
    if (!sendFrame(kSocketOfChild, good ? "ok" : "failed", 0, 0, answer, never)) break;
  }
  peer.reset();
  std::_Exit(0);
}

}  // namespace

const char* whereName(Where where) {
  switch (where) {
    case Where::SELF:
      return "Self";
    case Where::PAIR:
      return "Pair";
    case Where::PROCESS:
      return "Process";
  }
  return "?";
}

AgentConfig configOf(const BackendUnderTest& backend) {
  AgentConfig config;
  config.backends = {backend.name};
  config.backend_params[backend.name] = backend.params;
  return config;
}

std::unique_ptr<Target> Target::make(Where where, const BackendUnderTest& backend,
                                     const std::string& name, uint64_t size, Agent& agent) {
  switch (where) {
    case Where::SELF:
      return std::make_unique<LocalTarget>(backend, agent.name(), size, &agent);
    case Where::PAIR:
      return std::make_unique<LocalTarget>(backend, name, size, nullptr);
    case Where::PROCESS:
      return std::make_unique<ProcessTarget>(backend, name, size);
  }
  return nullptr;
}

MemDescriptor Target::part(uint64_t offset, uint64_t size) const {
  MemDescriptor part = whole_;
  part.address += offset;
  part.length = size;
  return part;
}

ProcessTarget::ProcessTarget(const BackendUnderTest& backend, const std::string& name,
                             uint64_t size)
    : Target(name), patience_(backend.patience) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    throw std::runtime_error("no socket for the other process");
  const std::string label = backend.label.empty() ? backend.name : backend.label;
  std::string argument = std::string(kArgument) + label;
  char* const arguments[] = {const_cast<char*>("conformance-peer"), argument.data(), nullptr};
  child_ = ::fork();
  if (child_ == 0) {  // other threads may hold any lock: nothing but system calls
    ::dup2(ends[1], kSocketOfChild);
    ::execv("/proc/self/exe", arguments);
    ::_exit(127);
  }
  ::close(ends[1]);
  socket_ = ends[0];
  ask("start", size, 0, name);
  whole_ = MemDescriptor(uint64_t{std::stoull(ask("address"))}, size, std::stoull(ask("device")),
                         backend.remote);
}

ProcessTarget::~ProcessTarget() {
  ::close(socket_);  // it ends by itself, as an agent would ...
  const auto deadline = Clock::now() + std::chrono::seconds(5);
  resume();
  while (child_ > 0 && Clock::now() < deadline) {
    if (::waitpid(child_, nullptr, WNOHANG) != 0) child_ = -1;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (child_ > 0) kill();  // ... or not
}

std::string ProcessTarget::ask(std::string_view verb, uint64_t a, uint64_t b,
                               std::string_view bytes) {
  const auto deadline = Clock::now() + 2 * patience_;
  Frame frame;
  std::string answer;
  if (!sendFrame(socket_, verb, a, b, bytes, deadline) ||
      !receiveFrame(socket_, &frame, &answer, deadline))
    throw std::runtime_error("the other process did not answer \"" + std::string(verb) + "\"");
  if (std::string_view(frame.verb) != "ok")
    throw std::runtime_error("the other process: " + std::string(verb) + ": " + answer);
  return answer;
}

void ProcessTarget::write(uint64_t offset, const Bytes& bytes) {
  ask("write", offset, 0, text(bytes));
}

Bytes ProcessTarget::read(uint64_t offset, uint64_t size) {
  return bytesOf(ask("read", offset, size));
}

std::string ProcessTarget::metadata() { return ask("metadata"); }
void ProcessTarget::load(const std::string& metadata) { ask("load", 0, 0, metadata); }
void ProcessTarget::deregister() { ask("deregister"); }

Errc ProcessTarget::notify(const std::string& peer, const std::string& message) {
  return static_cast<Errc>(std::stoi(ask("notify", peer.size(), 0, peer + message)));
}

std::vector<Notification> ProcessTarget::notifications(size_t count) {
  const std::string all = ask("notifications", count);
  std::vector<std::string> parts;
  for (size_t at = 0; at < all.size();) {
    const size_t colon = all.find(':', at);
    const size_t size = std::stoul(all.substr(at, colon - at));
    parts.push_back(all.substr(colon + 1, size));
    at = colon + 1 + size;
  }
  std::vector<Notification> list;
  for (size_t i = 0; i + 1 < parts.size(); i += 2) list.push_back({parts[i], parts[i + 1]});
  return list;
}

std::future<std::string> ProcessTarget::expect(const std::string& message, uint64_t offset,
                                               const Bytes& wanted) {
  // Sent now, so that it watches while the case goes on; until the answer, nothing else is asked.
  const auto deadline = Clock::now() + 2 * patience_;
  const bool sent =
      sendFrame(socket_, "expect", offset, message.size(), message + text(wanted), deadline);
  return std::async(std::launch::deferred, [this, sent, deadline] {
    Frame frame;
    std::string answer;
    if (!sent || !receiveFrame(socket_, &frame, &answer, deadline))
      return std::string("the other process did not answer");
    return answer;
  });
}

void ProcessTarget::kill() {
  ::kill(child_, SIGKILL);
  ::waitpid(child_, nullptr, 0);
  child_ = -1;
}

void ProcessTarget::stop() {
  ::kill(child_, SIGSTOP);
  ::waitpid(child_, nullptr, WUNTRACED);
}

void ProcessTarget::resume() {
  if (child_ > 0) ::kill(child_, SIGCONT);
}

void ProcessTarget::runIfAsked(int argc, char** argv,
                               const std::vector<BackendUnderTest>& backends) {
  if (argc != 2 || !std::string_view(argv[1]).starts_with(kArgument)) return;
  const std::string_view label = std::string_view(argv[1]).substr(kArgument.size());
  for (const BackendUnderTest& backend : backends)
    if ((backend.label.empty() ? backend.name : backend.label) == label) servePeer(backend);
  std::_Exit(1);
}

}  // namespace nixl::conformance
