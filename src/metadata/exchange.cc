#include "metadata/exchange.h"

#include <errno.h>
#include <fmt/format.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <deque>
#include <iterator>
#include <map>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/config.h"
#include "base/fd.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/mutex.h"
#include "metadata/frame.h"
#include "metadata/quiet_thread.h"
#include "metadata/resolver.h"
#include "metadata/wire.h"

namespace nixl::metadata {

namespace {

using base::Deadline;
using base::Fd;
using std::chrono::milliseconds;

constexpr uint64_t kWakeId = 0;
constexpr uint64_t kListenerId = 1;
constexpr uint64_t kFirstId = 2;

constexpr size_t kReadAtOnce = 256 << 10;  // bytes from one connection before others have a turn
constexpr int kFramesAtOnce = 16;          // and frames
constexpr uint64_t kSlowestBytesPerMs = 1024;
constexpr milliseconds kStalledWrite(10'000);
constexpr milliseconds kAcceptPause(100);      // when there are no descriptors left
constexpr milliseconds kAddressTimeout(1000);  // before a peer's next address is tried
constexpr milliseconds kFirstBackoff(20), kLongestBackoff(1000);
constexpr milliseconds kSilentPeer(10'000);  // then it is one that does not know SYNC
constexpr int kAttempts = 3;               // connections over which one message is sent
constexpr size_t kLongestText = 512;       // of an error that a peer reports

template <typename T>
void setOption(int fd, int level, int name, T value) {
  (void)setsockopt(fd, level, name, &value, sizeof(value));
}

// What others wrote, fit for a log line.
std::string printable(std::string_view text) {
  std::string shown(text.substr(0, kLongestText));
  for (char& c : shown)
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) c = '?';
  return shown;
}

std::string hostPort(const std::string& host, uint16_t port) {
  bool is_v6 = host.find(':') != std::string::npos;
  return fmt::format("{}{}{}:{}", is_v6 ? "[" : "", printable(host), is_v6 ? "]" : "", port);
}

SocketAddress nameOf(int fd, int (*get)(int, sockaddr*, socklen_t*)) {
  SocketAddress address;
  address.length = sizeof(address.storage);
  if (get(fd, reinterpret_cast<sockaddr*>(&address.storage), &address.length) != 0)
    address.length = 0;
  return address;
}

// A number of the kernel's range of free ports may connect to itself when nobody listens there.
bool isConnectedToItself(int fd) {
  return nameOf(fd, getsockname).text() == nameOf(fd, getpeername).text();
}

// Bytes that the peer's system has not acknowledged.
int unacknowledged(int fd) {
  int bytes = 0;
  return ioctl(fd, SIOCOUTQ, &bytes) == 0 ? bytes : 0;
}

Status listenStatus(const std::string& address, uint16_t port, int error) {
  std::string where = address.empty() ? fmt::format("all addresses, port {}", port)
                                      : fmt::format("address {}, port {}", address, port);
  std::string advice;
  if (error == EADDRINUSE) advice = "; another process has it, choose another listen_port, or 0";
  if (error == EADDRNOTAVAIL) advice = "; this host has no such address";
  if (error == EACCES) advice = "; ports below 1024 need privileges";
  return {error == EADDRINUSE ? Errc::NOT_ALLOWED : base::errnoCode(error),
          fmt::format("listen on {}: {}{}", where, base::errnoText(error), advice)};
}

// 0, or an errno value.
int tryListen(const SocketAddress& address, bool dual_stack, Fd& listener) {
  Fd fd(socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return errno;
  setOption(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (address.family() == AF_INET6)
    setOption(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, dual_stack ? 0 : 1);
  if (bind(fd.get(), address.get(), address.length) != 0) return errno;
  if (::listen(fd.get(), 1024) != 0) return errno;
  listener = std::move(fd);
  return 0;
}

Result<Fd> openListener(const std::string& text, uint16_t port) {
  Fd listener;
  if (text.empty()) {
    Result<SocketAddress> any6 = numericAddress("::", port);
    int error = any6.has_value() ? tryListen(*any6, true, listener) : EAFNOSUPPORT;
    // Built without IPv6, or switched off.
    if (error == EAFNOSUPPORT || error == EADDRNOTAVAIL || error == EPROTONOSUPPORT) {
      NIXL_ASSIGN_OR_RETURN(SocketAddress any4, numericAddress("0.0.0.0", port));
      error = tryListen(any4, false, listener);
    }
    if (error != 0) return listenStatus(text, port, error);
    NIXL_LOG_WARN_EVERY(
        1e9,
        "the metadata listener accepts connections on all addresses of this host (port {}), and "
        "whoever connects can read the agent's metadata; set NIXL_LISTEN_ADDRESS to an address of "
        "a network you trust, or to 127.0.0.1",
        nameOf(listener.get(), getsockname).port());
    return listener;
  }
  Result<SocketAddress> address = numericAddress(text == "localhost" ? "127.0.0.1" : text, port);
  if (!address.has_value())
    return Status(Errc::INVALID_PARAM,
                  fmt::format("listen on address \"{}\", port {}: NIXL_LISTEN_ADDRESS takes a "
                              "numeric address, for example 192.168.0.1 or ::1",
                              printable(text), port));
  int error = tryListen(*address, text == "::", listener);
  if (error != 0) return listenStatus(text, port, error);
  return listener;
}

// A connection, either way.
struct Connection {
  Connection(uint64_t its_id, Fd its_fd, uint64_t max_message)
      : id(its_id), fd(std::move(its_fd)), reader(max_message) {}

  const uint64_t id;
  Fd fd;
  FrameReader reader;
  uint32_t interest = 0;
  uint64_t last_used_ns = base::nowNs();
  Deadline frame_deadline = Deadline::never();
  Deadline write_deadline = Deadline::never();

  // Of others to us:
  std::string peer;  // for logs
  std::string out;
  size_t out_at = 0;
  bool ended = false;    // the peer sends no more; it still gets its answer
  Status last_load;      // since the last SYNC
};

enum class Kind { SEND, FETCH, INVALIDATE };

// One message to a peer, from when it is asked for until it is known to have arrived.
struct Message {
  Kind kind;
  std::string host;
  uint16_t port;
  std::string argument;  // blob, expected agent, agent: until it is in `frames`
  std::string frames;    // what goes over the connection
  uint64_t number = 0;
  int attempts = 0;
  Deadline deadline = Deadline::never();  // to reach the peer; once written, to be confirmed

  std::string what() const {
    std::string where = hostPort(host, port);
    switch (kind) {
      case Kind::SEND:
        return "send metadata to " + where;
      case Kind::FETCH:
        return "fetch metadata from " + where;
      case Kind::INVALIDATE:
        break;
    }
    return "tell " + where + " to forget this agent's metadata";
  }
};

// The way to one (host, port).
struct Route {
  enum class State { IDLE, RESOLVING, CONNECTING, CONNECTED, WAITING };

  uint64_t id = 0;
  std::string host;
  uint16_t port = 0;
  State state = State::IDLE;
  std::deque<Message> queue;
  size_t written = 0;  // messages at the front that have left and are not confirmed
  size_t offset = 0;   // bytes of the next one that have left
  std::vector<SocketAddress> addresses;
  size_t next_address = 0;
  Deadline round = Deadline::never();  // WAITING: when to try again; CONNECTING: to give up
  milliseconds backoff = kFirstBackoff;
  Status last_error;
  std::unique_ptr<Connection> connection;  // CONNECTING and CONNECTED
};

}  // namespace

// The members without a lock belong to the thread, and before it starts to start().
class Exchange::Loop {
 public:
  Loop(Host& host, Options options) : host_(host), options_(std::move(options)) {}
  ~Loop() { stop(Deadline::after(milliseconds(0))); }

  bool isForked() const { return base::forkGeneration() != born_; }
  Status open();
  void post(Message message);
  void stop(Deadline deadline);
  uint16_t port() const { return port_; }

 private:
  using State = Route::State;

  Status ensureThread() NIXL_REQUIRES(mu_);

  void run();
  void takePosted();
  void takeResolved();
  void handle(uint64_t id, uint32_t events);
  void runTimers();
  void at(Deadline deadline) { next_timer_ = std::min(next_timer_, deadline); }
  bool isDrained();

  // Others to us.
  void acceptSome();
  bool closeOldestIdle();
  void serve(Connection& connection, uint32_t events);
  void answer(Connection& connection, std::string_view body);
  void closeInbound(uint64_t id) { inbound_.erase(id); }

  // We to others. Most of these may end with the route gone: their callers return then.
  void advance(Route& route);
  void connectNext(Route& route);
  void connected(Route& route);
  void retryLater(Route& route, Status why);
  void talk(Route& route, uint32_t events);
  void understand(Route& route, std::string_view body);
  void disconnected(Route& route, const Status& why);
  void giveUpExpired(Route& route);
  void confirm(Route& route, size_t at);
  void dropWritten(Route& route);
  void fail(const Message& message, const Status& why);
  void forgetIfUnused(Route& route);

  // Both. An OK status means go on; REMOTE_DISCONNECT with no message is an orderly end.
  template <typename OnFrame>
  Status readFrames(Connection& connection, OnFrame on_frame);
  Result<size_t> write(Connection& connection, std::string_view bytes);
  void watch(Connection& connection, uint32_t events);

  Host& host_;
  const Options options_;
  const uint64_t born_ = base::forkGeneration();
  uint16_t port_ = 0;  // constant after open()

  base::Mutex mu_;  // a leaf
  base::CondVar ended_changed_;
  bool started_ NIXL_GUARDED_BY(mu_) = false;
  bool stopping_ NIXL_GUARDED_BY(mu_) = false;
  bool ended_ NIXL_GUARDED_BY(mu_) = false;
  Deadline stop_deadline_ NIXL_GUARDED_BY(mu_) = Deadline::never();
  std::vector<Message> posted_ NIXL_GUARDED_BY(mu_);
  std::thread thread_ NIXL_GUARDED_BY(mu_);
  std::shared_ptr<base::EventFd> wake_;  // constant once the thread has started
  Fd epoll_;

  Fd listener_;
  Deadline accept_again_ = Deadline::never();
  std::unique_ptr<Resolver> resolver_;
  uint64_t next_id_ = kFirstId;
  uint64_t next_number_ = 1;
  std::unordered_map<uint64_t, std::unique_ptr<Connection>> inbound_;
  std::map<std::pair<std::string, uint16_t>, std::unique_ptr<Route>> routes_;
  std::unordered_map<uint64_t, Route*> route_of_;  // by the id of a route or of its connection
  Deadline next_timer_ = Deadline::never();
  bool draining_ = false;  // stop() was called
};

// --- from any thread ---------------------------------------------------------------------------

Status Exchange::Loop::open() {
  if (!options_.listen) return {};
  NIXL_ASSIGN_OR_RETURN(listener_, openListener(options_.address, options_.port));
  port_ = nameOf(listener_.get(), getsockname).port();
  base::MutexLock lock(mu_);
  return ensureThread();
}

Status Exchange::Loop::ensureThread() {
  if (started_) return {};
  NIXL_ASSIGN_OR_RETURN(base::EventFd wake, base::EventFd::create());
  wake_ = std::make_shared<base::EventFd>(std::move(wake));
  epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return base::errnoStatus("create an epoll set", errno);
  resolver_ = std::make_unique<Resolver>(wake_);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWakeId;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_->fd(), &event) != 0)
    return base::errnoStatus("watch an eventfd", errno);
  event.data.u64 = kListenerId;
  if (listener_ && epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listener_.get(), &event) != 0)
    return base::errnoStatus("watch the metadata listener", errno);
  NIXL_ASSIGN_OR_RETURN(thread_, startQuietThread("nixl-exchange", [this] { run(); }));
  started_ = true;
  return {};
}

void Exchange::Loop::post(Message message) {
  std::string what = message.what();
  Status status;
  if (isForked()) {
    status = Status(Errc::FORKED, "the agent belongs to the parent process");
  } else if (message.port == 0) {
    status = Status(Errc::INVALID_PARAM, "port 0 is no address to connect to");
  } else {
    base::MutexLock lock(mu_);
    if (stopping_) {
      status = Status(Errc::SHUT_DOWN, "the agent is being destroyed");
    } else {
      status = ensureThread();
    }
    if (status.ok()) {
      posted_.push_back(std::move(message));
      wake_->signal();
    }
  }
  // From the caller's thread: here the exchange's own does not run.
  if (!status.ok()) host_.exchangeFailed(what, status);
}

void Exchange::Loop::stop(Deadline deadline) {
  if (isForked()) return;  // the thread, and who may have held the lock, are in the parent
  std::thread thread;
  {
    base::MutexLock lock(mu_);
    if (stopping_) stop_deadline_ = std::min(stop_deadline_, deadline);
    if (!stopping_) stop_deadline_ = deadline;
    stopping_ = true;
    if (!started_) return;
    wake_->signal();
    while (!ended_ && !deadline.expired()) ended_changed_.waitUntil(mu_, deadline);
    thread = std::move(thread_);
  }
  if (thread.joinable()) thread.join();
}

// --- the thread --------------------------------------------------------------------------------

void Exchange::Loop::run() {
  std::array<epoll_event, 64> events;
  for (;;) {
    Deadline sleep = next_timer_;
    {
      base::MutexLock lock(mu_);
      draining_ = stopping_;
      if (draining_) sleep = std::min(sleep, stop_deadline_);
      if (draining_ && stop_deadline_.expired()) break;
    }
    if (draining_ && isDrained()) break;  // nothing is left that could wake it
    int ready = epoll_wait(epoll_.get(), events.data(), events.size(), sleep.remainingMs());
    for (int i = 0; i < ready; ++i) handle(events[i].data.u64, events[i].events);
    if (next_timer_.expired()) runTimers();
  }
  Deadline deadline = Deadline::never();
  {
    base::MutexLock lock(mu_);
    deadline = stop_deadline_;
  }
  for (auto& [address, route] : routes_)
    for (Message& message : route->queue)
      NIXL_LOG_INFO("{}: not done, the agent is being destroyed", message.what());
  resolver_->stop(deadline);
  routes_.clear();
  route_of_.clear();
  inbound_.clear();
  listener_.reset();
  base::MutexLock lock(mu_);
  ended_ = true;
  ended_changed_.notifyAll();
}

void Exchange::Loop::handle(uint64_t id, uint32_t events) {
  if (id == kWakeId) {
    wake_->drain();
    takePosted();
    takeResolved();
  } else if (id == kListenerId) {
    acceptSome();
  } else if (auto in = inbound_.find(id); in != inbound_.end()) {
    serve(*in->second, events);
  } else if (auto out = route_of_.find(id); out != route_of_.end()) {
    talk(*out->second, events);
  }
}

void Exchange::Loop::takePosted() {
  std::vector<Message> posted;
  {
    base::MutexLock lock(mu_);
    posted.swap(posted_);
  }
  std::vector<Route*> touched;
  for (Message& message : posted) {
    message.number = next_number_++;
    message.deadline = Deadline::after(options_.connect_timeout);
    switch (message.kind) {
      case Kind::SEND:
        appendFrame(message.frames, Word::LOAD, message.argument);
        break;
      case Kind::FETCH:
        appendFrame(message.frames, Word::SEND, {});
        break;
      case Kind::INVALIDATE:
        appendFrame(message.frames, Word::INVL, message.argument);
        break;
    }
    if (message.kind != Kind::FETCH) {
      message.argument = {};
      char number[8];
      base::storeLittle(number, message.number);
      appendFrame(message.frames, Word::SYNC, {number, sizeof(number)});
    }
    std::unique_ptr<Route>& route = routes_[{message.host, message.port}];
    if (!route) {
      route = std::make_unique<Route>();
      route->id = next_id_++;
      route->host = message.host;
      route->port = message.port;
      route_of_[route->id] = route.get();
    }
    at(message.deadline);
    route->queue.push_back(std::move(message));
    if (std::find(touched.begin(), touched.end(), route.get()) == touched.end())
      touched.push_back(route.get());
  }
  for (Route* route : touched) advance(*route);
}

void Exchange::Loop::takeResolved() {
  for (Resolver::Answer& answer : resolver_->take()) {
    auto found = route_of_.find(answer.id);
    if (found == route_of_.end() || found->second->state != State::RESOLVING) continue;
    Route& route = *found->second;
    if (answer.addresses.has_value()) {
      route.addresses = *std::move(answer.addresses);
      route.next_address = 0;
      connectNext(route);
    } else if (answer.addresses.error().code() == Errc::INVALID_PARAM) {
      route.state = State::IDLE;
      std::deque<Message> failed = std::exchange(route.queue, {});
      forgetIfUnused(route);
      for (Message& message : failed) fail(message, answer.addresses.error());
    } else {
      retryLater(route, std::move(answer.addresses).error());
    }
  }
}

// True when no message waits for a peer that can be reached.
bool Exchange::Loop::isDrained() {
  {
    base::MutexLock lock(mu_);
    if (!posted_.empty()) return false;
  }
  for (auto& [address, route] : routes_) {
    bool may_leave = route->state == State::CONNECTED || route->state == State::RESOLVING ||
                     route->state == State::CONNECTING;
    if (!may_leave) continue;
    for (size_t i = 0; i < route->queue.size(); ++i) {
      if (route->queue[i].kind == Kind::FETCH) continue;  // nobody is there for the answer
      if (i >= route->written) return false;
      // Its system has all of it: enough, when there is no time to ask the peer itself.
      if (unacknowledged(route->connection->fd.get()) > 0) {
        at(Deadline::after(milliseconds(5)));
        return false;
      }
    }
  }
  return true;  // answers need not leave: nobody can use metadata of an agent that ends
}

void Exchange::Loop::runTimers() {
  next_timer_ = Deadline::never();
  uint64_t now = base::nowNs();
  uint64_t idle_ns = static_cast<uint64_t>(options_.idle_timeout.count()) * 1'000'000;

  if (accept_again_.expired()) {
    accept_again_ = Deadline::never();
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = kListenerId;
    (void)epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, listener_.get(), &event);
  }
  at(accept_again_);

  std::vector<uint64_t> closing;
  for (auto& [id, connection] : inbound_) {
    if (connection->frame_deadline.expired()) {
      NIXL_LOG_WARN_EVERY(10, "metadata listener: {} sent {} of {} bytes of a message and stopped",
                          connection->peer, connection->reader.received(),
                          connection->reader.length());
      closing.push_back(id);
    } else if (connection->write_deadline.expired()) {
      NIXL_LOG_WARN_EVERY(10, "metadata listener: {} does not take its answer", connection->peer);
      closing.push_back(id);
    } else if (now - connection->last_used_ns >= idle_ns) {
      closing.push_back(id);
    } else {
      at(connection->frame_deadline);
      at(connection->write_deadline);
      at(Deadline::atNs(connection->last_used_ns + idle_ns));
    }
  }
  for (uint64_t id : closing) closeInbound(id);

  std::vector<uint64_t> ids;
  for (auto& [address, route] : routes_) ids.push_back(route->id);
  for (uint64_t id : ids) {
    auto found = route_of_.find(id);
    if (found == route_of_.end()) continue;
    Route& route = *found->second;
    switch (route.state) {
      case State::IDLE:
        forgetIfUnused(route);
        break;
      case State::RESOLVING:
        giveUpExpired(route);
        break;
      case State::WAITING:
        if (route.round.expired()) {
          route.state = State::IDLE;
          advance(route);
        } else {
          at(route.round);
          giveUpExpired(route);
        }
        break;
      case State::CONNECTING:
        if (route.round.expired()) {
          route.last_error = Status(Errc::TIMEOUT,
                                    route.addresses[route.next_address - 1].text() +
                                        " does not answer");
          connectNext(route);
        } else {
          at(route.round);
          giveUpExpired(route);
        }
        break;
      case State::CONNECTED: {
        Connection& connection = *route.connection;
        if (connection.frame_deadline.expired()) {
          disconnected(route, {Errc::TIMEOUT, "the peer stopped in the middle of its answer"});
          break;
        }
        if (connection.write_deadline.expired()) {
          disconnected(route, {Errc::TIMEOUT, "the peer does not take the message"});
          break;
        }
        if (route.queue.empty() && now - connection.last_used_ns >= idle_ns) {
          disconnected(route, {});
          break;
        }
        at(connection.frame_deadline);
        at(connection.write_deadline);
        if (route.queue.empty()) at(Deadline::atNs(connection.last_used_ns + idle_ns));
        dropWritten(route);
        break;
      }
    }
  }
}

// --- others to us ------------------------------------------------------------------------------

void Exchange::Loop::acceptSome() {
  for (int i = 0; i < 64; ++i) {
    SocketAddress from;
    from.length = sizeof(from.storage);
    int fd = accept4(listener_.get(), reinterpret_cast<sockaddr*>(&from.storage), &from.length,
                     SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
      int error = errno;
      if (error == EAGAIN || error == EWOULDBLOCK) return;
      if (error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM) {
        NIXL_LOG_ERROR_EVERY(10, "metadata listener: accept a connection: {}; trying again",
                             base::errnoText(error));
        closeOldestIdle();
        // Until later: the listener stays readable, and would keep this thread busy.
        epoll_event event{};
        event.data.u64 = kListenerId;
        (void)epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, listener_.get(), &event);
        accept_again_ = Deadline::after(kAcceptPause);
        at(accept_again_);
        return;
      }
      continue;  // of a peer that has gone again
    }
    if (inbound_.size() >= options_.max_connections && !closeOldestIdle()) {
      NIXL_LOG_WARN_EVERY(10, "metadata listener: {} connections are busy, a further one is closed",
                          inbound_.size());
      Fd refused(fd);
      continue;
    }
    auto connection = std::make_unique<Connection>(next_id_++, Fd(fd), options_.max_message);
    connection->peer = from.text();
    setOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    setOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    at(Deadline::after(options_.idle_timeout));
    watch(*connection, EPOLLIN);
    inbound_.emplace(connection->id, std::move(connection));
  }
}

bool Exchange::Loop::closeOldestIdle() {
  const Connection* oldest = nullptr;
  for (auto& [id, connection] : inbound_) {
    if (connection->reader.started() || connection->out_at < connection->out.size()) continue;
    if (oldest == nullptr || connection->last_used_ns < oldest->last_used_ns)
      oldest = connection.get();
  }
  if (oldest == nullptr) return false;
  closeInbound(oldest->id);
  return true;
}

void Exchange::Loop::serve(Connection& connection, uint32_t events) {
  connection.last_used_ns = base::nowNs();
  Status status;
  // One answer at a time: who does not read them cannot make us keep more.
  if (connection.out.empty() && !connection.ended && (events & ~EPOLLOUT) != 0) {
    status = readFrames(connection, [&](std::string_view body) { answer(connection, body); });
    if (status.code() == Errc::REMOTE_DISCONNECT && status.message().empty()) {
      connection.ended = true;
      status = {};
    }
  }
  if (status.ok() && !connection.out.empty()) {
    Result<size_t> wrote =
        write(connection, std::string_view(connection.out).substr(connection.out_at));
    if (wrote.has_value()) {
      connection.out_at += *wrote;
      if (connection.out_at == connection.out.size()) {
        connection.out = {};
        connection.out_at = 0;
      }
    }
    status = wrote.status();
  }
  if (status.code() == Errc::LIMIT)
    NIXL_LOG_WARN_EVERY(10, "metadata listener: {}: {}", connection.peer, status.message());
  else if (!status.ok())
    NIXL_LOG_DEBUG("metadata listener: {}: {}", connection.peer, status.message());
  if (!status.ok() || (connection.ended && connection.out.empty())) {
    closeInbound(connection.id);
    return;
  }
  watch(connection, connection.out.empty() ? EPOLLIN : EPOLLOUT);
}

void Exchange::Loop::answer(Connection& connection, std::string_view body) {
  std::optional<Command> command = parseCommand(body);
  if (!command) {
    NIXL_LOG_DEBUG("metadata listener: {} sent {} bytes that are no command", connection.peer,
                   body.size());
    return;
  }
  switch (command->word) {
    case Word::LOAD:
      connection.last_load = host_.load(command->payload);
      if (!connection.last_load.ok())
        host_.exchangeFailed("load metadata that " + connection.peer + " sent",
                             connection.last_load);
      break;
    case Word::SEND: {
      Result<std::string> metadata = host_.localMetadata();
      if (!metadata.has_value())
        host_.exchangeFailed("give metadata to " + connection.peer, metadata.error());
      appendFrame(connection.out, Word::LOAD, metadata.value_or(std::string()));
      break;
    }
    case Word::INVL: {
      Status status = host_.invalidate(command->payload);
      if (!status.ok())
        NIXL_LOG_DEBUG("metadata listener: {} asked to forget \"{}\": {}", connection.peer,
                       printable(command->payload), status.message());
      break;
    }
    case Word::SYNC: {
      base::ByteWriter done;
      done.raw(command->payload.substr(0, 8));
      done.u32(static_cast<uint32_t>(connection.last_load.code()));
      done.raw(std::string_view(connection.last_load.message()).substr(0, kLongestText));
      connection.last_load = {};
      appendFrame(connection.out, Word::DONE, done.view());
      break;
    }
    case Word::DONE:
      break;
  }
}

// --- we to others ------------------------------------------------------------------------------

// Does what the route's state and queue ask for next.
void Exchange::Loop::advance(Route& route) {
  switch (route.state) {
    case State::IDLE:
      giveUpExpired(route);
      break;
    case State::CONNECTED:
      talk(route, EPOLLOUT);
      return;
    default:
      return;  // on its way
  }
}

// Fails messages that have waited too long for a connection; starts one for those that are left.
void Exchange::Loop::giveUpExpired(Route& route) {
  std::vector<Message> expired;
  for (auto message = route.queue.begin(); message != route.queue.end();) {
    if (message->deadline.expired()) {
      expired.push_back(std::move(*message));
      message = route.queue.erase(message);
    } else {
      at(message->deadline);
      ++message;
    }
  }
  Status why = route.last_error;
  if (why.ok())
    why = Status(Errc::TIMEOUT, route.state == State::CONNECTING
                                    ? route.addresses[route.next_address - 1].text() +
                                          " does not answer"
                                    : "the name service does not answer");
  if (route.queue.empty()) {
    if (route.connection) route_of_.erase(route.connection->id);
    route.connection.reset();
    route.state = State::IDLE;
    forgetIfUnused(route);
  } else if (route.state == State::IDLE) {
    route.state = State::RESOLVING;
    resolver_->look(route.id, route.host, route.port);
  }
  for (Message& message : expired)
    fail(message,
         Status(why).within(fmt::format("not reached within {} ms (NIXL_CONNECT_TIMEOUT_MS)",
                                        options_.connect_timeout.count())));
}

void Exchange::Loop::connectNext(Route& route) {
  if (route.connection) route_of_.erase(route.connection->id);
  route.connection.reset();
  while (route.next_address < route.addresses.size()) {
    const SocketAddress& address = route.addresses[route.next_address++];
    bool is_last = route.next_address == route.addresses.size();
    Fd fd(socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    int error = !fd || (connect(fd.get(), address.get(), address.length) != 0) ? errno : 0;
    if (error != 0 && error != EINPROGRESS) {
      route.last_error = base::errnoStatus("connect to " + address.text(), error);
      continue;
    }
    route.connection =
        std::make_unique<Connection>(next_id_++, std::move(fd), options_.max_message);
    route_of_[route.connection->id] = &route;
    route.state = State::CONNECTING;
    route.round = Deadline::after(is_last ? options_.connect_timeout
                                          : std::min(options_.connect_timeout, kAddressTimeout));
    at(route.round);
    watch(*route.connection, EPOLLOUT);
    return;  // also when it is connected already: EPOLLOUT comes at once
  }
  retryLater(route, Status(route.last_error));
}

void Exchange::Loop::retryLater(Route& route, Status why) {
  NIXL_LOG_INFO("metadata exchange with {}: {}; trying again", hostPort(route.host, route.port),
                why.message());
  route.last_error = std::move(why);
  route.state = State::WAITING;
  route.round = Deadline::after(route.backoff);
  at(route.round);
  route.backoff = std::min(2 * route.backoff, kLongestBackoff);
  giveUpExpired(route);
}

void Exchange::Loop::connected(Route& route) {
  int fd = route.connection->fd.get();
  setOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  setOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  setOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<unsigned>(kStalledWrite.count()));
  route.state = State::CONNECTED;
  route.backoff = kFirstBackoff;
  route.last_error = {};
  route.written = 0;
  route.offset = 0;
}

void Exchange::Loop::talk(Route& route, uint32_t events) {
  if (route.state == State::CONNECTING) {
    const SocketAddress& address = route.addresses[route.next_address - 1];
    int error = 0;
    socklen_t length = sizeof(error);
    if (getsockopt(route.connection->fd.get(), SOL_SOCKET, SO_ERROR, &error, &length) != 0)
      error = errno;
    if (error == 0 && isConnectedToItself(route.connection->fd.get())) error = ECONNREFUSED;
    if (error != 0) {
      route.last_error = base::errnoStatus("connect to " + address.text(), error);
      connectNext(route);
      return;
    }
    connected(route);
  }
  if (route.state != State::CONNECTED) return;
  Connection& connection = *route.connection;
  connection.last_used_ns = base::nowNs();
  at(Deadline::after(options_.idle_timeout));

  if ((events & ~EPOLLOUT) != 0) {
    Status status = readFrames(connection, [&](std::string_view body) { understand(route, body); });
    if (!status.ok()) {
      if (status.message().empty())
        status = Status(Errc::REMOTE_DISCONNECT, "the peer closed the connection");
      disconnected(route, status);
      return;
    }
  }
  while (route.written < route.queue.size()) {
    Message& message = route.queue[route.written];
    Result<size_t> wrote = write(connection, std::string_view(message.frames).substr(route.offset));
    if (!wrote.has_value()) {
      disconnected(route, wrote.error());
      return;
    }
    route.offset += *wrote;
    if (route.offset < message.frames.size()) break;
    route.offset = 0;
    ++route.written;
    message.deadline =
        Deadline::after(message.kind == Kind::FETCH ? options_.answer_timeout : kSilentPeer);
    at(message.deadline);
  }
  watch(connection, route.written < route.queue.size() ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

void Exchange::Loop::understand(Route& route, std::string_view body) {
  std::optional<Command> command = parseCommand(body);
  if (!command) return;
  if (command->word == Word::DONE) {
    base::ByteReader in(command->payload);
    uint64_t number = in.u64();
    auto code = static_cast<Errc>(static_cast<int>(in.u32()));
    std::string text = printable(in.view(in.remaining()));
    for (size_t i = 0; i < route.written; ++i) {
      if (route.queue[i].number != number || route.queue[i].kind == Kind::FETCH) continue;
      Message message = std::move(route.queue[i]);
      confirm(route, i);
      if (in.ok() && code != Errc::OK)
        fail(message, {code, "the peer did not take it: " + text});
      return;
    }
    return;
  }
  if (command->word != Word::LOAD) return;
  for (size_t i = 0; i < route.written; ++i) {
    if (route.queue[i].kind != Kind::FETCH) continue;
    Message message = std::move(route.queue[i]);
    confirm(route, i);
    if (command->payload.empty()) {
      fail(message, {Errc::NOT_FOUND, "the peer has no metadata to give"});
      return;
    }
    if (!message.argument.empty()) {
      Result<Blob> blob = decode(command->payload);
      Status status = blob.status();
      if (blob.has_value() && blob->agent != message.argument)
        status = Status(Errc::MISMATCH,
                        fmt::format("asked for agent \"{}\", and agent \"{}\" answered; it was not "
                                    "loaded",
                                    printable(message.argument), printable(blob->agent)));
      if (!status.ok()) {
        fail(message, status);
        return;
      }
    }
    Status loaded = host_.load(command->payload);
    if (!loaded.ok()) fail(message, loaded);
    return;
  }
  NIXL_LOG_DEBUG("metadata exchange with {}: an answer that nobody asked for",
                 hostPort(route.host, route.port));
}

// The message at this place, which was written, is done.
void Exchange::Loop::confirm(Route& route, size_t at_place) {
  route.queue.erase(route.queue.begin() + static_cast<ptrdiff_t>(at_place));
  --route.written;
}

// Messages that were written and of which nothing was heard.
void Exchange::Loop::dropWritten(Route& route) {
  bool all_arrived = unacknowledged(route.connection->fd.get()) == 0;
  for (size_t i = 0; i < route.written;) {
    Message& message = route.queue[i];
    if (!message.deadline.expired()) {
      at(message.deadline);
      ++i;
    } else if (message.kind == Kind::FETCH) {
      // Answers have no number: a late one would be taken for that of the next question.
      Message late = std::move(message);
      confirm(route, i);
      std::string why = fmt::format("no answer within {} ms", options_.answer_timeout.count());
      disconnected(route, {Errc::TIMEOUT, why});
      fail(late, {Errc::TIMEOUT, why});
      return;
    } else if (all_arrived) {
      confirm(route, i);
    } else {
      message.deadline = Deadline::after(milliseconds(100));
      at(message.deadline);
      ++i;
    }
  }
}

// What was not confirmed is sent again over a new connection.
void Exchange::Loop::disconnected(Route& route, const Status& why) {
  route_of_.erase(route.connection->id);
  route.connection.reset();
  route.state = State::IDLE;
  // The next one too, begun or not: so that a peer which closes at once ends somewhere.
  size_t begun = std::min(route.queue.size(), route.written + 1);
  route.written = 0;
  route.offset = 0;
  std::vector<Message> again, failed;
  for (size_t i = 0; i < begun; ++i) {
    Message message = std::move(route.queue.front());
    route.queue.pop_front();
    if (++message.attempts >= kAttempts)
      failed.push_back(std::move(message));
    else
      again.push_back(std::move(message));
  }
  route.queue.insert(route.queue.begin(), std::make_move_iterator(again.begin()),
                     std::make_move_iterator(again.end()));
  for (Message& message : route.queue) message.deadline = Deadline::after(options_.connect_timeout);
  route.last_error = why;
  giveUpExpired(route);
  for (Message& message : failed) fail(message, why);
}

void Exchange::Loop::fail(const Message& message, const Status& why) {
  host_.exchangeFailed(message.what(), why);
}

void Exchange::Loop::forgetIfUnused(Route& route) {
  if (route.state != State::IDLE || !route.queue.empty()) return;
  route_of_.erase(route.id);
  routes_.erase({route.host, route.port});
}

// --- both --------------------------------------------------------------------------------------

template <typename OnFrame>
Status Exchange::Loop::readFrames(Connection& connection, OnFrame on_frame) {
  FrameReader& reader = connection.reader;
  size_t bytes = 0;
  int frames = 0;
  while (bytes < kReadAtOnce && frames < kFramesAtOnce) {
    std::span<char> space = reader.space();
    ssize_t n = recv(connection.fd.get(), space.data(), space.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
    if (n < 0) return base::errnoStatus("read", errno);
    if (n == 0)
      return {Errc::REMOTE_DISCONNECT,
              reader.started() ? "closed in the middle of a message" : ""};
    if (!reader.started()) connection.frame_deadline = Deadline::after(options_.frame_timeout);
    bytes += static_cast<size_t>(n);
    NIXL_TRY(reader.filled(static_cast<size_t>(n)));
    if (!reader.complete()) continue;
    ++frames;
    connection.frame_deadline = Deadline::never();
    on_frame(reader.body());
    reader.next();
    if (!connection.out.empty()) break;
  }
  // A long message may take its time, as long as it comes.
  if (reader.started()) {
    if (bytes > 0 && !connection.frame_deadline.isNever())
      connection.frame_deadline =
          Deadline::atNs(connection.frame_deadline.ns() + bytes * 1'000'000 / kSlowestBytesPerMs);
    at(connection.frame_deadline);
  }
  return {};
}

// How many bytes left; fewer than asked for when the peer's side is full.
Result<size_t> Exchange::Loop::write(Connection& connection, std::string_view bytes) {
  size_t done = 0;
  while (done < bytes.size() && done < (kReadAtOnce << 4)) {
    ssize_t n = ::send(connection.fd.get(), bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
    if (n < 0) return base::errnoStatus("write", errno);
    done += static_cast<size_t>(n);
  }
  if (done == bytes.size()) {
    connection.write_deadline = Deadline::never();
  } else if (done > 0 || connection.write_deadline.isNever()) {
    connection.write_deadline = Deadline::after(kStalledWrite);
    at(connection.write_deadline);
  }
  return done;
}

void Exchange::Loop::watch(Connection& connection, uint32_t events) {
  if (connection.interest == events) return;
  epoll_event event{};
  event.events = events;
  event.data.u64 = connection.id;
  int operation = connection.interest == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
  if (epoll_ctl(epoll_.get(), operation, connection.fd.get(), &event) != 0)
    NIXL_LOG_ERROR("metadata exchange: watch a connection: {}", base::errnoText(errno));
  connection.interest = events;
}

// --- the face ----------------------------------------------------------------------------------

Exchange::Exchange(std::unique_ptr<Loop> loop) : loop_(std::move(loop)) {}
Exchange::~Exchange() {
  // In a child the thread is not there, and nobody knows what it was changing.
  if (loop_->isForked()) (void)loop_.release();
}

Result<std::unique_ptr<Exchange>> Exchange::start(Host& host, Options options) {
  if (options.connect_timeout.count() == 0) {
    NIXL_ASSIGN_OR_RETURN(int64_t ms, base::configInt("NIXL_CONNECT_TIMEOUT_MS"));
    options.connect_timeout = milliseconds(ms);
  }
  auto loop = std::make_unique<Loop>(host, std::move(options));
  NIXL_TRY(loop->open());
  return std::unique_ptr<Exchange>(new Exchange(std::move(loop)));
}

uint16_t Exchange::port() const { return loop_->port(); }

void Exchange::send(std::string host, uint16_t port, std::string blob) {
  loop_->post({Kind::SEND, std::move(host), port, std::move(blob), {}});
}

void Exchange::fetch(std::string host, uint16_t port, std::string expected_agent) {
  loop_->post({Kind::FETCH, std::move(host), port, std::move(expected_agent), {}});
}

void Exchange::invalidate(std::string host, uint16_t port, std::string agent) {
  loop_->post({Kind::INVALIDATE, std::move(host), port, std::move(agent), {}});
}

void Exchange::stop(Deadline deadline) { loop_->stop(deadline); }

}  // namespace nixl::metadata
