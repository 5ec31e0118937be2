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
#include "base/random.h"
#include "metadata/channel.h"
#include "metadata/crypto.h"
#include "metadata/frame.h"
#include "metadata/handshake.h"
#include "metadata/quiet_thread.h"
#include "metadata/resolver.h"
#include "metadata/wire.h"

namespace nixl::metadata {

namespace {

using base::Deadline;
using base::Fd;
using std::chrono::milliseconds;

constexpr uint64_t kWakeId = 0;
constexpr uint64_t kFirstListenerId = 1;
constexpr size_t kMostListeners = 15;
constexpr uint64_t kFirstId = 16;

constexpr size_t kReadAtOnce = 256 << 10;  // bytes from one connection before others have a turn
constexpr int kFramesAtOnce = 16;          // and frames
constexpr uint64_t kSlowestBytesPerMs = 1024;
constexpr milliseconds kStalledWrite(10'000);
constexpr milliseconds kAcceptPause(100);      // when there are no descriptors left
constexpr milliseconds kAddressTimeout(1000);  // before a peer's next address is tried
constexpr milliseconds kFirstBackoff(20), kLongestBackoff(1000);
constexpr int kAttempts = 3;               // connections over which one message is sent
constexpr size_t kLongestText = 512;       // of an error that a peer is told
constexpr size_t kStrangersMessage = 4096;  // bytes, before one may send metadata
constexpr milliseconds kGoodbye(1000);      // for one that was refused, to read why
// A host that vanished without a word is noticed within 5 + 3 * 2 seconds.
constexpr int kKeepIdleS = 5, kKeepIntervalS = 2, kKeepProbes = 3;

template <typename T>
void setOption(int fd, int level, int name, T value) {
  (void)setsockopt(fd, level, name, &value, sizeof(value));
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
  if (error == EADDRNOTAVAIL)
    advice = "; this host has no such address, choose one of its own (ip address), or none";
  if (error == EACCES)
    advice = "; low ports need privileges, choose a listen_port of 1024 or more, or 0";
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

// Every address of the host. IPv6 alone takes IPv4 too.
Result<Fd> listenEverywhere(uint16_t port) {
  Fd listener;
  Result<SocketAddress> any6 = numericAddress("::", port);
  int error = any6.has_value() ? tryListen(*any6, true, listener) : EAFNOSUPPORT;
  // Built without IPv6, or switched off.
  if (error == EAFNOSUPPORT || error == EADDRNOTAVAIL || error == EPROTONOSUPPORT) {
    NIXL_ASSIGN_OR_RETURN(SocketAddress any4, numericAddress("0.0.0.0", port));
    error = tryListen(any4, false, listener);
  }
  if (error != 0) return listenStatus("", port, error);
  return listener;
}

// The addresses that a list names, each once.
Result<std::vector<std::string>> addressesOf(std::string_view list) {
  std::vector<std::string> addresses;
  auto add = [&](std::string_view address) {
    if (std::find(addresses.begin(), addresses.end(), address) == addresses.end())
      addresses.emplace_back(address);
  };
  for (std::string_view rest = list; !rest.empty();) {
    const size_t comma = std::min(rest.find(','), rest.size());
    std::string_view one = rest.substr(0, comma);
    rest.remove_prefix(std::min(comma + 1, rest.size()));
    while (one.starts_with(' ')) one.remove_prefix(1);
    while (one.ends_with(' ')) one.remove_suffix(1);
    if (one.empty()) continue;
    if (one == "localhost") {
      add("127.0.0.1");
      add("::1");
    } else {
      add(one);
    }
  }
  if (addresses.empty() || addresses.size() > kMostListeners)
    return {Errc::INVALID_PARAM,
            fmt::format("listen on \"{}\": NIXL_LISTEN_ADDRESS takes 1 to {} addresses, separated "
                        "by commas",
                        printable(list), kMostListeners)};
  return addresses;
}

bool isLoopback(const SocketAddress& address) {
  if (address.family() == AF_INET)
    return (ntohl(reinterpret_cast<const sockaddr_in*>(address.get())->sin_addr.s_addr) >> 24) ==
           127;
  return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(address.get())->sin6_addr);
}

// What one peer has of addresses: one of IPv4, and of IPv6 a network of 64 bits.
std::string neighbourhoodOf(const SocketAddress& address) {
  std::string text = address.text();
  text.erase(text.rfind(':'));
  if (address.family() != AF_INET6) return text;
  const in6_addr& ip = reinterpret_cast<const sockaddr_in6*>(address.get())->sin6_addr;
  if (IN6_IS_ADDR_V4MAPPED(&ip) || IN6_IS_ADDR_LOOPBACK(&ip)) return text;
  std::string network = "network ";
  for (int i = 0; i < 8; i += 2)
    network += fmt::format("{:x}:", ip.s6_addr[i] << 8 | ip.s6_addr[i + 1]);
  return network + ":/64";
}

// All of them, with one port.
Result<std::vector<Fd>> openListeners(const std::string& text, uint16_t port) {
  std::vector<Fd> listeners;
  if (text.empty()) {
    NIXL_ASSIGN_OR_RETURN(Fd everywhere, listenEverywhere(port));
    listeners.push_back(std::move(everywhere));
    return listeners;
  }
  NIXL_ASSIGN_OR_RETURN(std::vector<std::string> addresses, addressesOf(text));
  // A port that the system chooses for the first address may be in use at another.
  for (int attempt = 0; attempt < 16; ++attempt) {
    listeners.clear();
    uint16_t common = port;
    int error = 0;
    for (const std::string& one : addresses) {
      Result<SocketAddress> address = numericAddress(one, common);
      if (!address.has_value())
        return Status(Errc::INVALID_PARAM,
                      fmt::format("listen on address \"{}\", port {}: NIXL_LISTEN_ADDRESS takes "
                                  "numeric addresses, for example 192.168.0.1 or ::1",
                                  printable(one), port));
      Fd listener;
      error = tryListen(*address, one == "::" && addresses.size() == 1, listener);
      // "localhost" on a host without IPv6, or without IPv4.
      if (error == EAFNOSUPPORT || error == EPROTONOSUPPORT || error == EADDRNOTAVAIL)
        if (isLoopback(*address) && addresses.size() > 1) continue;
      if (error == EADDRINUSE && port == 0 && !listeners.empty()) break;
      if (error != 0) return listenStatus(one, port, error);
      common = nameOf(listener.get(), getsockname).port();
      listeners.push_back(std::move(listener));
    }
    if (error == EADDRINUSE) continue;
    if (listeners.empty()) return listenStatus(text, port, EADDRNOTAVAIL);
    return listeners;
  }
  return listenStatus(text, port, EADDRINUSE);
}

void keepAlive(int fd) {
  setOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  setOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  setOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, kKeepIdleS);
  setOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, kKeepIntervalS);
  setOption(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepProbes);
  setOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<unsigned>(kStalledWrite.count()));
}

// How far the two ends of a connection have got.
enum class Stage {
  FIRST_BYTES,  // of one to us: in clear, or the start of TLS?
  TLS,          // the handshake
  KEY,          // the other end has not proved yet that it has the key
  OPEN,         // messages
  REFUSED,      // it is told why, and nothing is read any more
};

// A connection, either way.
struct Connection {
  Connection(uint64_t its_id, Fd its_fd, uint64_t max_message)
      : id(its_id), channel(std::move(its_fd)), reader(max_message) {}

  const uint64_t id;
  Channel channel;
  FrameReader reader;
  uint32_t interest = 0;
  const uint64_t born_ns = base::nowNs();
  uint64_t last_used_ns = born_ns;
  Deadline frame_deadline = Deadline::never();
  Deadline write_deadline = Deadline::never();

  std::string out;  // to be written before anything else
  size_t out_at = 0;

  Stage stage = Stage::OPEN;
  Deadline stage_deadline = Deadline::never();  // to get further
  std::optional<Digest> binding;                // what proofs cover: handshake.h
  uint64_t proofs = 0;                          // that went over this connection
  std::optional<Incarnation> holder;            // whose metadata came from here, and was loaded

  // Of others to us:
  std::string peer;         // for logs
  std::string address;      // as neighbourhoodOf() has it
  std::array<char, 8> first{};
  size_t first_bytes = 0;
  bool known = false;       // it showed the credentials, or sent metadata that was loaded
  bool served = false;      // a whole message came
  bool ended = false;       // the peer sends no more; it still gets its answer
  std::optional<Proof> proof;  // of the next message
  Status last_status;          // of what came since the last SYNC

  // Of us to others:
  Digest nonce{};
  bool greeted = false;     // HELO is on its way
  bool heard = false;       // a whole message came

  // Of both: the peer has our metadata from here, and nobody takes our name there as long as this
  // stays open.
  bool introduced = false;
};

// One that says who is alive at its other end is in use, also when nothing goes over it.
bool isIdle(const Connection& connection) {
  return !connection.holder && !connection.introduced;
}

enum class Kind { SEND, FETCH, INVALIDATE };

// One message to a peer, from when it is asked for until it is known to have arrived.
struct Message {
  Kind kind;
  std::string host;
  uint16_t port;
  std::string argument;  // blob, expected agent, agent
  std::string frames = {};  // what goes over the connection, with a proof for that one
  uint64_t number = 0;
  int attempts = 0;
  Deadline deadline = Deadline::never();  // to reach the peer; once written, to be confirmed
  Deadline give_up = Deadline::never();   // to reach the peer

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
  void acceptSome(uint64_t listener_id);
  bool makeRoom(const std::string& address);
  bool closeOldestIdle();
  void watchListeners(uint32_t events);
  void serve(Connection& connection, uint32_t events);
  Status readFirstBytes(Connection& connection);
  Status establish(Connection& connection);
  Status answer(Connection& connection, std::string_view body);
  Status believe(Connection& connection, const Command& command);
  void complain(std::string what, const Status& status);
  void refuse(Connection& connection, const Status& why);
  bool flush(Connection& connection, Status& status);
  void setHolder(Connection& connection, const Incarnation& holder);
  void dropHolder(Connection& connection);
  void closeInbound(uint64_t id);

  // We to others. Most of these may end with the route gone: their callers return then.
  void advance(Route& route);
  void connectNext(Route& route);
  void connected(Route& route);
  void retryLater(Route& route, Status why);
  void talk(Route& route, uint32_t events);
  Status goOn(Route& route, uint32_t events);
  Status begin(Connection& connection, const std::string& host);
  Status secured(Connection& connection);
  Status writeMessages(Route& route);
  void compose(Connection& connection, Message& message);
  Status understand(Route& route, std::string_view body);
  void take(Route& route, std::string_view blob);
  void disconnected(Route& route, const Status& why);
  void refused(Route& route, const Status& why);
  void dropConnection(Route& route);
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

  class Arrival;

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

  std::vector<Fd> listeners_;
  Deadline accept_again_ = Deadline::never();
  std::unique_ptr<Resolver> resolver_;
  uint64_t next_id_ = kFirstId;
  uint64_t next_number_ = 1;
  std::unordered_map<uint64_t, std::unique_ptr<Connection>> inbound_;
  std::map<std::pair<std::string, uint16_t>, std::unique_ptr<Route>> routes_;
  std::unordered_map<uint64_t, Route*> route_of_;  // by the id of a route or of its connection
  base::LogLimiter complaints_;
  std::map<Incarnation, int> holders_;   // connections by whose metadata came from there
  std::vector<uint64_t> again_, turn_;   // connections with bytes that no poll() will announce
  Deadline next_timer_ = Deadline::never();
  bool draining_ = false;  // stop() was called
};

class Exchange::Loop::Arrival final : public Exchange::Source {
 public:
  Arrival(const Loop& loop, const Incarnation* sender) : loop_(loop), sender_(sender) {}
  const Incarnation* sender() const override { return sender_; }
  bool isConnected(const Incarnation& incarnation) const override {
    return loop_.holders_.contains(incarnation);
  }

 private:
  const Loop& loop_;
  const Incarnation* sender_;
};

// --- from any thread ---------------------------------------------------------------------------

Status Exchange::Loop::open() {
  if (!options_.listen) return {};
  NIXL_ASSIGN_OR_RETURN(listeners_, openListeners(options_.address, options_.port));
  port_ = nameOf(listeners_.front().get(), getsockname).port();
  const bool reachable = std::any_of(listeners_.begin(), listeners_.end(), [](const Fd& listener) {
    return !isLoopback(nameOf(listener.get(), getsockname));
  });
  if (reachable && options_.credentials->isOpen())
    NIXL_LOG_WARN_EVERY(
        1e9,
        "the metadata listener (port {}) serves whoever reaches it, and with an agent's metadata "
        "its memory can be read and written. Give all agents one key (NIXL_AUTH_KEY_FILE) or "
        "certificates (NIXL_TLS_CERT_FILE, NIXL_TLS_KEY_FILE, NIXL_TLS_CA_FILE), or set "
        "NIXL_LISTEN_ADDRESS to an address of a network you trust",
        port_);
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
  for (size_t i = 0; i < listeners_.size(); ++i) {
    event.data.u64 = kFirstListenerId + i;
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listeners_[i].get(), &event) != 0)
      return base::errnoStatus("watch the metadata listener", errno);
  }
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
    int ready = epoll_wait(epoll_.get(), events.data(), events.size(),
                           again_.empty() ? sleep.remainingMs() : 0);
    for (int i = 0; i < ready; ++i) handle(events[i].data.u64, events[i].events);
    turn_.swap(again_);
    for (uint64_t id : turn_) handle(id, EPOLLIN);
    turn_.clear();
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
  listeners_.clear();
  base::MutexLock lock(mu_);
  ended_ = true;
  ended_changed_.notifyAll();
}

void Exchange::Loop::handle(uint64_t id, uint32_t events) {
  if (id == kWakeId) {
    wake_->drain();
    takePosted();
    takeResolved();
  } else if (id < kFirstId) {
    acceptSome(id);
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
    message.give_up = message.deadline = Deadline::after(options_.connect_timeout);
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
      if (unacknowledged(route->connection->channel.fd()) > 0) {
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
    watchListeners(EPOLLIN);
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
    } else if (connection->stage_deadline.expired()) {
      if (connection->stage != Stage::REFUSED)
        NIXL_LOG_WARN_EVERY(10,
                            "metadata listener: {} connected and did not say within {} ms what it "
                            "wants (NIXL_GREETING_TIMEOUT_MS)",
                            connection->peer, options_.greeting_timeout.count());
      closing.push_back(id);
    } else if (isIdle(*connection) && now - connection->last_used_ns >= idle_ns) {
      closing.push_back(id);
    } else {
      at(connection->frame_deadline);
      at(connection->write_deadline);
      at(connection->stage_deadline);
      if (isIdle(*connection)) at(Deadline::atNs(connection->last_used_ns + idle_ns));
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
        if (connection.stage_deadline.expired()) {
          disconnected(route, {Errc::TIMEOUT,
                               fmt::format("the peer does not go on with the greeting, within {} "
                                           "ms (NIXL_GREETING_TIMEOUT_MS); is it of another "
                                           "library?",
                                           options_.greeting_timeout.count())});
          break;
        }
        const bool idle = route.queue.empty() && isIdle(connection);
        if (idle && now - connection.last_used_ns >= idle_ns) {
          disconnected(route, {});
          break;
        }
        at(connection.frame_deadline);
        at(connection.write_deadline);
        at(connection.stage_deadline);
        if (idle) at(Deadline::atNs(connection.last_used_ns + idle_ns));
        dropWritten(route);
        break;
      }
    }
  }
}

// --- others to us ------------------------------------------------------------------------------

void Exchange::Loop::watchListeners(uint32_t events) {
  for (size_t i = 0; i < listeners_.size(); ++i) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = kFirstListenerId + i;
    (void)epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, listeners_[i].get(), &event);
  }
}

void Exchange::Loop::acceptSome(uint64_t listener_id) {
  const Fd& listener = listeners_[listener_id - kFirstListenerId];
  for (int i = 0; i < 64; ++i) {
    SocketAddress from;
    from.length = sizeof(from.storage);
    int fd = accept4(listener.get(), reinterpret_cast<sockaddr*>(&from.storage), &from.length,
                     SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
      int error = errno;
      if (error == EAGAIN || error == EWOULDBLOCK) return;
      if (error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM) {
        NIXL_LOG_ERROR_EVERY(10, "metadata listener: accept a connection: {}; trying again",
                             base::errnoText(error));
        closeOldestIdle();
        // Until later: the listener stays readable, and would keep this thread busy.
        watchListeners(0);
        accept_again_ = Deadline::after(kAcceptPause);
        at(accept_again_);
        return;
      }
      continue;  // of a peer that has gone again
    }
    Fd accepted(fd);
    std::string address = neighbourhoodOf(from);
    if (!makeRoom(address)) continue;
    auto connection = std::make_unique<Connection>(next_id_++, std::move(accepted),
                                                   std::min<uint64_t>(kStrangersMessage,
                                                                      options_.max_message));
    connection->peer = from.text();
    connection->address = std::move(address);
    connection->stage = Stage::FIRST_BYTES;
    connection->stage_deadline = Deadline::after(options_.greeting_timeout);
    keepAlive(fd);
    at(connection->stage_deadline);
    at(Deadline::after(options_.idle_timeout));
    watch(*connection, EPOLLIN);
    inbound_.emplace(connection->id, std::move(connection));
  }
}

namespace {

// How soon a connection may be closed to make room for another one: the lower, the sooner. Who gets
// on with saying who it is has more time than one that only connected.
enum class Place { REFUSED, SILENT, IDLE, BUSY, KNOWN };

Place placeOf(const Connection& connection) {
  if (connection.stage == Stage::REFUSED) return Place::REFUSED;
  if (connection.known) return Place::KNOWN;
  if (connection.stage == Stage::FIRST_BYTES) return Place::SILENT;
  const bool idle =
      connection.served && !connection.reader.started() && connection.out.empty();
  return idle ? Place::IDLE : Place::BUSY;
}

// One that was answered may be about to ask again; one that is busy may send a byte now and then,
// so that its age counts, not its last word.
bool mayGo(const Connection& connection, uint64_t now_ns) {
  constexpr uint64_t kMs = 1'000'000;
  switch (placeOf(connection)) {
    case Place::REFUSED:
      return true;
    case Place::SILENT:
      return now_ns - connection.born_ns >= 20 * kMs;
    case Place::IDLE:
      return now_ns - connection.last_used_ns >= 100 * kMs;
    case Place::BUSY:
    case Place::KNOWN:
      break;
  }
  return now_ns - connection.born_ns >= 250 * kMs;
}

}  // namespace

// For one more from there, which nobody knows yet. False when there is none: it has to come again.
//
// Whoever opens connections as fast as it can takes the room of others at its own address, and not
// that of those who are known.
bool Exchange::Loop::makeRoom(const std::string& address) {
  const uint64_t now = base::nowNs();
  auto close_first = [&](auto is_candidate) {
    const Connection* first = nullptr;
    auto rank = [](const Connection& c) { return std::pair(placeOf(c), c.last_used_ns); };
    for (auto& [id, connection] : inbound_) {
      const Connection& c = *connection;
      if (mayGo(c, now) && is_candidate(c) && (first == nullptr || rank(c) < rank(*first)))
        first = &c;
    }
    if (first != nullptr) closeInbound(first->id);
    return first != nullptr;
  };

  auto is_alike = [&](const Connection& c) { return !c.known && c.address == address; };
  size_t strangers = 0;
  for (auto& [id, connection] : inbound_) strangers += is_alike(*connection);
  if (strangers >= options_.max_strangers && !close_first(is_alike)) {
    NIXL_LOG_WARN_EVERY(10,
                        "metadata listener: {} has {} connections that have not said who they are "
                        "(NIXL_LISTEN_STRANGERS), a further one is closed",
                        address, strangers);
    return false;
  }
  // Of those who are known only one that is idle.
  auto is_spare = [](const Connection& c) {
    return !c.known || (!c.reader.started() && c.out.empty());
  };
  if (inbound_.size() >= options_.max_connections && !close_first(is_spare)) {
    NIXL_LOG_WARN_EVERY(10,
                        "metadata listener: {} connections are busy (NIXL_LISTEN_CONNECTIONS), a "
                        "further one is closed",
                        inbound_.size());
    return false;
  }
  return true;
}

bool Exchange::Loop::closeOldestIdle() {
  const Connection* oldest = nullptr;
  auto before = [](const Connection& a, const Connection& b) {
    return std::pair(a.known, a.last_used_ns) < std::pair(b.known, b.last_used_ns);
  };
  for (auto& [id, connection] : inbound_) {
    if (connection->reader.started() || !connection->out.empty()) continue;
    if (oldest == nullptr || before(*connection, *oldest)) oldest = connection.get();
  }
  if (oldest == nullptr) return false;
  closeInbound(oldest->id);
  return true;
}

void Exchange::Loop::setHolder(Connection& connection, const Incarnation& holder) {
  if (connection.holder == holder) return;
  dropHolder(connection);
  connection.holder = holder;
  ++holders_[holder];
}

void Exchange::Loop::dropHolder(Connection& connection) {
  if (!connection.holder) return;
  auto found = holders_.find(*connection.holder);
  if (--found->second == 0) holders_.erase(found);
  connection.holder.reset();
}

void Exchange::Loop::closeInbound(uint64_t id) {
  auto found = inbound_.find(id);
  if (found == inbound_.end()) return;
  dropHolder(*found->second);
  inbound_.erase(found);
}

void Exchange::Loop::serve(Connection& connection, uint32_t events) {
  connection.last_used_ns = base::nowNs();
  if (connection.stage == Stage::REFUSED && connection.out.empty()) {
    if (!connection.channel.discard()) closeInbound(connection.id);
    return;
  }
  Status status;
  if (connection.stage == Stage::FIRST_BYTES) status = readFirstBytes(connection);
  if (status.ok() && connection.stage == Stage::TLS) status = establish(connection);
  // One answer at a time: who does not read them cannot make us keep more.
  const bool messages = connection.stage == Stage::KEY || connection.stage == Stage::OPEN;
  if (status.ok() && messages && connection.out.empty() && !connection.ended &&
      (events & ~EPOLLOUT) != 0) {
    status = readFrames(connection,
                        [&](std::string_view body) { return answer(connection, body); });
    if (status.code() == Errc::REMOTE_DISCONNECT && status.message().empty()) {
      connection.ended = true;
      status = {};
    }
  }
  if (status.code() == Errc::NOT_ALLOWED || status.code() == Errc::LIMIT) {
    NIXL_LOG_WARN_EVERY(10, "metadata listener: {} is refused: {}", connection.peer,
                        status.message());
    refuse(connection, status);
    status = {};
  }
  const bool flushed = flush(connection, status);
  if (status.code() == Errc::MISMATCH)
    NIXL_LOG_WARN_EVERY(10, "metadata listener: {}: {}", connection.peer, status.message());
  else if (!status.ok() && !status.message().empty())
    NIXL_LOG_DEBUG("metadata listener: {}: {}", connection.peer, status.message());
  if (!status.ok() || (connection.ended && flushed)) {
    closeInbound(connection.id);
    return;
  }
  if (connection.stage == Stage::REFUSED && flushed) connection.channel.finishWriting();
  if (flushed && connection.channel.hasDecrypted()) again_.push_back(connection.id);
  watch(connection, !flushed                              ? EPOLLOUT
                    : connection.channel.wantsToWrite() ? EPOLLIN | EPOLLOUT
                                                          : EPOLLIN);
}

// In clear, or the start of TLS? The two cannot be mistaken: taken for the length of a message, the
// start of TLS is more than a terabyte.
Status Exchange::Loop::readFirstBytes(Connection& connection) {
  std::array<char, 8>& first = connection.first;
  while (connection.first_bytes < first.size()) {
    NIXL_ASSIGN_OR_RETURN(
        size_t n, connection.channel.read(std::span(first).subspan(connection.first_bytes)));
    if (n == 0) return {};
    connection.first_bytes += n;
  }
  const std::string_view bytes(first.data(), first.size());
  const bool tls = first[0] == 0x16 && first[1] == 3 && first[5] == 1;
  const Credentials& credentials = *options_.credentials;
  if (tls && credentials.isOpen())
    return {Errc::NOT_ALLOWED,
            "it speaks TLS, and here neither NIXL_AUTH_KEY_FILE nor NIXL_TLS_CERT_FILE is set; set "
            "at both ends what is set at one"};
  if (tls) {
    NIXL_TRY(connection.channel.startTls(options_.credentials, End::LISTENER, "", bytes));
    connection.stage = Stage::TLS;
    return {};
  }
  if (!credentials.isOpen())
    return {Errc::NOT_ALLOWED,
            fmt::format("it speaks in clear, and here {} is set; set the same there (agents of "
                        "other libraries cannot, and cannot be met then)",
                        credentials.variables())};
  connection.stage = Stage::OPEN;
  std::copy(first.begin(), first.end(), connection.reader.space().begin());
  NIXL_TRY(connection.reader.filled(first.size()));
  connection.frame_deadline = Deadline::after(options_.frame_timeout);
  return {};
}

Status Exchange::Loop::establish(Connection& connection) {
  NIXL_TRY(connection.channel.handshake());
  if (!connection.channel.isEstablished()) return {};
  connection.binding = connection.channel.binding();
  if (options_.credentials->hasKey()) {
    connection.stage = Stage::KEY;
    return {};
  }
  connection.stage = Stage::OPEN;
  connection.stage_deadline = Deadline::never();
  connection.known = true;
  connection.reader.setLimit(options_.max_message);
  return {};
}

// Writes what waits; true when nothing does any more.
bool Exchange::Loop::flush(Connection& connection, Status& status) {
  if (!status.ok() || connection.out.empty()) return connection.out.empty();
  Result<size_t> wrote =
      write(connection, std::string_view(connection.out).substr(connection.out_at));
  status = wrote.status();
  if (!wrote.has_value()) return false;
  connection.out_at += *wrote;
  if (connection.out_at < connection.out.size()) return false;
  connection.out = {};
  connection.out_at = 0;
  return true;
}

// It gets the reason as a message, where the two understand each other that far.
void Exchange::Loop::refuse(Connection& connection, const Status& why) {
  const bool can_read_it = connection.stage != Stage::TLS;
  connection.stage = Stage::REFUSED;
  connection.stage_deadline = Deadline::after(kGoodbye);
  connection.frame_deadline = Deadline::never();
  at(connection.stage_deadline);
  connection.out = {};
  connection.out_at = 0;
  if (can_read_it) appendFrame(connection.out, Word::DENY, encodeDenial(why.code(), why.message()));
}

// A failure ends the connection.
Status Exchange::Loop::answer(Connection& connection, std::string_view body) {
  std::optional<Command> command = parseCommand(body);
  if (connection.stage == Stage::KEY) {
    const Digest expected = options_.credentials->proof(End::CLIENT, *connection.binding);
    if (!command || command->word != Word::AUTH)
      return {Errc::NOT_ALLOWED,
              "it does not prove a key, and here NIXL_AUTH_KEY_FILE is set; set the same there"};
    if (!isSame(command->payload, viewOf(expected)))
      return {Errc::NOT_ALLOWED,
              "its key is another one; NIXL_AUTH_KEY_FILE must hold the same at both ends"};
    appendFrame(connection.out, Word::AUTH,
                viewOf(options_.credentials->proof(End::LISTENER, *connection.binding)));
    connection.stage = Stage::OPEN;
    connection.stage_deadline = Deadline::never();
    connection.known = true;
    connection.reader.setLimit(options_.max_message);
    return {};
  }
  connection.served = true;
  connection.stage_deadline = Deadline::never();
  if (!command) {
    NIXL_LOG_DEBUG("metadata listener: {} sent {} bytes that are no command", connection.peer,
                   body.size());
    return {};
  }
  switch (command->word) {
    case Word::HELO: {
      std::optional<Hello> theirs = decodeHello(command->payload);
      if (!theirs || connection.binding) break;  // inside of TLS there is a binding already
      Hello ours;
      base::randomBytes(ours.nonce.data(), ours.nonce.size());
      ours.incarnation = options_.identity->incarnation();
      connection.binding = bindingOf(theirs->nonce, ours.nonce, ours.incarnation);
      connection.reader.setLimit(options_.max_message);
      appendFrame(connection.out, Word::HELO, encodeHello(ours));
      break;
    }
    case Word::AUTH:
      return {Errc::NOT_ALLOWED,
              "it has a key (NIXL_AUTH_KEY_FILE), and here none is set; set the same here"};
    case Word::SIGN:
      connection.proof = decodeProof(command->payload);
      break;
    case Word::LOAD:
    case Word::INVL: {
      Status status = believe(connection, *command);
      if (!status.ok()) {
        complain(command->word == Word::LOAD
                     ? fmt::format("load metadata that {} sent", connection.peer)
                     : fmt::format("forget metadata, as {} asks", connection.peer),
                 status);
        connection.last_status = std::move(status);
      }
      break;
    }
    case Word::SEND: {
      Result<std::string> metadata = host_.localMetadata();
      if (!metadata.has_value()) complain("give metadata to " + connection.peer, metadata.error());
      connection.introduced = connection.introduced || metadata.has_value();
      appendFrame(connection.out, Word::LOAD, metadata.value_or(std::string()));
      break;
    }
    case Word::SYNC: {
      base::ByteWriter done;
      done.raw(command->payload.substr(0, 8));
      done.u32(static_cast<uint32_t>(connection.last_status.code()));
      done.raw(std::string_view(connection.last_status.message()).substr(0, kLongestText));
      connection.last_status = {};
      appendFrame(connection.out, Word::DONE, done.view());
      break;
    }
    case Word::DONE:
    case Word::DENY:
      break;
  }
  return {};
}

// Of what others do: not more often than somebody can read it.
void Exchange::Loop::complain(std::string what, const Status& status) {
  uint64_t more = 0;
  if (!complaints_.admit(1, &more)) return;
  if (more > 0) what += fmt::format(" ({} more like this were not told)", more);
  host_.exchangeFailed(what, status);
}

// What is said in the name of an agent, if it is this agent that says it.
Status Exchange::Loop::believe(Connection& connection, const Command& command) {
  const std::optional<Proof> proof = std::exchange(connection.proof, std::nullopt);
  if (!proof)
    return {Errc::NOT_ALLOWED,
            "it came without a proof of who sent it, so anybody may have: the sender is another "
            "library, or an older version of this one"};
  const uint64_t number = connection.proofs++;
  if (!connection.binding ||
      !isProof(*proof, *connection.binding, number, command.word, command.payload))
    return {Errc::NOT_ALLOWED,
            "its proof is not good for it: it was altered on its way, or recorded elsewhere"};
  const Incarnation sender = fingerprint(proof->key);
  if (command.word == Word::INVL) {
    Status status = host_.invalidate(command.payload, sender);
    if (status.code() != Errc::NOT_FOUND) return status;
    NIXL_LOG_DEBUG("metadata listener: {} asked to forget \"{}\": {}", connection.peer,
                   printable(command.payload), status.message());
    return {};
  }
  Result<Incarnation> loaded = host_.load(command.payload, Arrival(*this, &sender));
  if (!loaded.has_value()) return std::move(loaded).error();
  setHolder(connection, *loaded);
  connection.known = true;
  return {};
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
    dropConnection(route);
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
  dropConnection(route);
  while (route.next_address < route.addresses.size()) {
    const SocketAddress& address = route.addresses[route.next_address++];
    bool is_last = route.next_address == route.addresses.size();
    Fd fd(socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    int error = !fd || (connect(fd.get(), address.get(), address.length) != 0) ? errno : 0;
    if (error != 0 && error != EINPROGRESS) {
      route.last_error = connectFailure(address, error);
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

void Exchange::Loop::dropConnection(Route& route) {
  if (!route.connection) return;
  dropHolder(*route.connection);
  route_of_.erase(route.connection->id);
  route.connection.reset();
}

void Exchange::Loop::connected(Route& route) {
  keepAlive(route.connection->channel.fd());
  route.state = State::CONNECTED;
  route.last_error = {};
  route.written = 0;
  route.offset = 0;
}

void Exchange::Loop::talk(Route& route, uint32_t events) {
  if (route.state == State::CONNECTING) {
    const SocketAddress& address = route.addresses[route.next_address - 1];
    const int fd = route.connection->channel.fd();
    int error = 0;
    socklen_t length = sizeof(error);
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) error = errno;
    if (error == 0 && isConnectedToItself(fd)) error = ECONNREFUSED;
    if (error != 0) {
      route.last_error = connectFailure(address, error);
      connectNext(route);
      return;
    }
    connected(route);
    Status begun = begin(*route.connection, route.host);
    if (!begun.ok()) {
      refused(route, begun);
      return;
    }
  }
  if (route.state != State::CONNECTED) return;
  Connection& connection = *route.connection;
  connection.last_used_ns = base::nowNs();
  at(Deadline::after(options_.idle_timeout));
  Status status = goOn(route, events);
  if (status.ok()) return;
  // What is so today is so the next time: trying again would only hide it.
  if (status.code() == Errc::NOT_ALLOWED || status.code() == Errc::LIMIT) {
    refused(route, status);
    return;
  }
  if (status.message().empty())
    status = Status(Errc::REMOTE_DISCONNECT, "the peer closed the connection");
  disconnected(route, status);
}

// A connection has just been made.
Status Exchange::Loop::begin(Connection& connection, const std::string& host) {
  if (options_.credentials->isOpen()) return {};
  connection.stage = Stage::TLS;
  connection.stage_deadline = Deadline::after(options_.greeting_timeout);
  at(connection.stage_deadline);
  return connection.channel.startTls(options_.credentials, End::CLIENT, host, {});
}

// TLS is there: now the key, if there is one.
Status Exchange::Loop::secured(Connection& connection) {
  connection.binding = connection.channel.binding();
  if (options_.credentials->hasKey()) {
    connection.stage = Stage::KEY;
    appendFrame(connection.out, Word::AUTH,
                viewOf(options_.credentials->proof(End::CLIENT, *connection.binding)));
  } else {
    connection.stage = Stage::OPEN;
    connection.stage_deadline = Deadline::never();
  }
  return {};
}

// A failure ends the connection.
Status Exchange::Loop::goOn(Route& route, uint32_t events) {
  Connection& connection = *route.connection;
  if (connection.stage == Stage::TLS) {
    NIXL_TRY(connection.channel.handshake());
    if (connection.channel.isEstablished()) NIXL_TRY(secured(connection));
  }
  if (connection.stage != Stage::TLS && (events & ~EPOLLOUT) != 0)
    NIXL_TRY(readFrames(connection,
                        [&](std::string_view body) { return understand(route, body); }));
  NIXL_TRY(writeMessages(route));
  if (connection.channel.hasDecrypted()) again_.push_back(connection.id);
  const bool begun =
      route.written < route.queue.size() && !route.queue[route.written].frames.empty();
  const bool has_more = !connection.out.empty() || begun || connection.channel.wantsToWrite();
  watch(connection, has_more ? EPOLLIN | EPOLLOUT : EPOLLIN);
  return {};
}

Status Exchange::Loop::writeMessages(Route& route) {
  Connection& connection = *route.connection;
  Status status;
  if (connection.stage == Stage::TLS || !flush(connection, status)) return status;
  while (connection.stage == Stage::OPEN && route.written < route.queue.size()) {
    Message& message = route.queue[route.written];
    if (message.kind != Kind::FETCH && !connection.binding) {
      // It needs a number of the peer's to prove whose it is.
      if (connection.greeted) return {};
      connection.greeted = true;
      base::randomBytes(connection.nonce.data(), connection.nonce.size());
      appendFrame(connection.out, Word::HELO, encodeHello({.nonce = connection.nonce}));
      connection.stage_deadline = Deadline::after(options_.greeting_timeout);
      at(connection.stage_deadline);
      if (!flush(connection, status)) return status;
      return {};
    }
    if (message.frames.empty()) compose(connection, message);
    NIXL_ASSIGN_OR_RETURN(
        size_t wrote, write(connection, std::string_view(message.frames).substr(route.offset)));
    route.offset += wrote;
    if (route.offset < message.frames.size()) return {};
    route.offset = 0;
    ++route.written;
    message.frames = {};
    message.deadline = Deadline::after(options_.answer_timeout);
    at(message.deadline);
  }
  return {};
}

// As it goes over this connection, and no other.
void Exchange::Loop::compose(Connection& connection, Message& message) {
  if (message.kind == Kind::FETCH) {
    appendFrame(message.frames, Word::SEND, {});
    return;
  }
  const Word word = message.kind == Kind::SEND ? Word::LOAD : Word::INVL;
  appendFrame(message.frames, Word::SIGN,
              encodeProof(prove(*options_.identity, *connection.binding, connection.proofs++, word,
                                message.argument)));
  appendFrame(message.frames, word, message.argument);
  char number[8];
  base::storeLittle(number, message.number);
  appendFrame(message.frames, Word::SYNC, {number, sizeof(number)});
}

Status Exchange::Loop::understand(Route& route, std::string_view body) {
  Connection& connection = *route.connection;
  connection.heard = true;
  route.backoff = kFirstBackoff;
  std::optional<Command> command = parseCommand(body);
  if (command && command->word == Word::DENY) return decodeDenial(command->payload);
  if (connection.stage == Stage::KEY) {
    const Digest expected = options_.credentials->proof(End::LISTENER, *connection.binding);
    if (!command || command->word != Word::AUTH || !isSame(command->payload, viewOf(expected)))
      return {Errc::NOT_ALLOWED,
              "the peer does not prove that it has this agent's key; NIXL_AUTH_KEY_FILE must hold "
              "the same at both ends"};
    connection.stage = Stage::OPEN;
    connection.stage_deadline = Deadline::never();
    return {};
  }
  if (!command) return {};
  switch (command->word) {
    case Word::HELO: {
      std::optional<Hello> theirs = decodeHello(command->payload);
      if (!theirs || !connection.greeted || connection.binding) return {};
      connection.binding = bindingOf(connection.nonce, theirs->nonce, theirs->incarnation);
      connection.stage_deadline = Deadline::never();
      return {};
    }
    case Word::DONE: {
      base::ByteReader in(command->payload);
      uint64_t number = in.u64();
      auto code = static_cast<Errc>(static_cast<int>(in.u32()));
      std::string text = printable(in.view(in.remaining()));
      for (size_t i = 0; i < route.written; ++i) {
        if (route.queue[i].number != number || route.queue[i].kind == Kind::FETCH) continue;
        Message message = std::move(route.queue[i]);
        confirm(route, i);
        const bool good = !in.ok() || code == Errc::OK;
        if (good) connection.introduced = message.kind == Kind::SEND;
        if (!good) fail(message, {code, "the peer did not take it: " + text});
        return {};
      }
      return {};
    }
    case Word::LOAD:
      take(route, command->payload);
      return {};
    default:
      return {};
  }
}

// The answer to the first fetch that has none yet.
void Exchange::Loop::take(Route& route, std::string_view payload) {
  for (size_t i = 0; i < route.written; ++i) {
    if (route.queue[i].kind != Kind::FETCH) continue;
    Message message = std::move(route.queue[i]);
    confirm(route, i);
    if (payload.empty()) {
      fail(message, {Errc::NOT_FOUND, "the peer has no metadata to give"});
      return;
    }
    if (!message.argument.empty()) {
      Result<Blob> blob = decode(payload);
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
    Result<Incarnation> loaded = host_.load(payload, Arrival(*this, nullptr));
    if (loaded.has_value())
      setHolder(*route.connection, *loaded);
    else
      fail(message, loaded.error());
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
  for (size_t i = 0; i < route.written; ++i) {
    if (!route.queue[i].deadline.expired()) {
      at(route.queue[i].deadline);
      continue;
    }
    // Answers to fetches have no number: a late one would be taken for that of the next question.
    Message late = std::move(route.queue[i]);
    confirm(route, i);
    std::string why = fmt::format("no answer within {} ms", options_.answer_timeout.count());
    disconnected(route, {Errc::TIMEOUT, why});
    fail(late, {Errc::TIMEOUT, why});
    return;
  }
}

// What was not confirmed is sent again over a new connection.
void Exchange::Loop::disconnected(Route& route, const Status& why) {
  const bool heard = route.connection->heard;
  dropConnection(route);
  route.state = State::IDLE;
  // The next one too, begun or not: so that a peer which closes at once ends somewhere.
  size_t begun = std::min(route.queue.size(), route.written + 1);
  route.written = 0;
  route.offset = 0;
  std::vector<Message> again, failed;
  for (size_t i = 0; i < begun; ++i) {
    Message message = std::move(route.queue.front());
    route.queue.pop_front();
    if (heard && ++message.attempts >= kAttempts)
      failed.push_back(std::move(message));
    else
      again.push_back(std::move(message));
  }
  route.queue.insert(route.queue.begin(), std::make_move_iterator(again.begin()),
                     std::make_move_iterator(again.end()));
  for (Message& message : route.queue) {
    message.frames = {};
    message.deadline = heard ? Deadline::after(options_.connect_timeout) : message.give_up;
  }
  route.last_error = why;
  // One that says nothing at all may have no room now, or be about to start.
  if (heard || route.queue.empty())
    giveUpExpired(route);
  else
    retryLater(route, why);
  for (Message& message : failed) fail(message, why);
}

// Nothing that is sent there will be taken, until something is changed at one end.
void Exchange::Loop::refused(Route& route, const Status& why) {
  dropConnection(route);
  route.state = State::IDLE;
  route.written = 0;
  route.offset = 0;
  std::deque<Message> failed = std::exchange(route.queue, {});
  forgetIfUnused(route);
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
    if (!reader.complete()) {
      std::span<char> space = reader.space();
      Result<size_t> n = connection.channel.read(space);
      if (!n.has_value()) {
        if (n.error().code() == Errc::REMOTE_DISCONNECT && reader.started())
          return {Errc::REMOTE_DISCONNECT, "closed in the middle of a message"};
        return std::move(n).error();
      }
      if (*n == 0) break;
      if (!reader.started()) connection.frame_deadline = Deadline::after(options_.frame_timeout);
      bytes += *n;
      NIXL_TRY(reader.filled(*n));
      if (!reader.complete()) continue;
    }
    ++frames;
    connection.frame_deadline = Deadline::never();
    NIXL_TRY(on_frame(reader.body()));
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
    NIXL_ASSIGN_OR_RETURN(size_t n, connection.channel.write(bytes.substr(done)));
    if (n == 0) break;
    done += n;
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
  if (epoll_ctl(epoll_.get(), operation, connection.channel.fd(), &event) != 0)
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
  if (options.greeting_timeout.count() == 0) {
    NIXL_ASSIGN_OR_RETURN(int64_t ms, base::configInt("NIXL_GREETING_TIMEOUT_MS"));
    options.greeting_timeout = milliseconds(ms);
  }
  if (options.max_connections == 0) {
    NIXL_ASSIGN_OR_RETURN(int64_t most, base::configInt("NIXL_LISTEN_CONNECTIONS"));
    options.max_connections = static_cast<size_t>(most);
  }
  if (options.max_strangers == 0) {
    NIXL_ASSIGN_OR_RETURN(int64_t most, base::configInt("NIXL_LISTEN_STRANGERS"));
    options.max_strangers = static_cast<size_t>(most);
  }
  if (options.max_message == 0) {
    NIXL_ASSIGN_OR_RETURN(options.max_message, base::configSize("NIXL_LISTEN_MESSAGE_LIMIT"));
    if (options.max_message < kStrangersMessage)
      return Status(Errc::INVALID_PARAM,
                    fmt::format("NIXL_LISTEN_MESSAGE_LIMIT is {} bytes; must be at least {}",
                                options.max_message, kStrangersMessage));
  }
  if (!options.credentials) {
    NIXL_ASSIGN_OR_RETURN(Credentials::Files files, Credentials::configured());
    NIXL_ASSIGN_OR_RETURN(options.credentials, Credentials::load(files));
  }
  if (!options.identity) options.identity = Identity::create();
  auto loop = std::make_unique<Loop>(host, std::move(options));
  NIXL_TRY(loop->open());
  return std::unique_ptr<Exchange>(new Exchange(std::move(loop)));
}

uint16_t Exchange::port() const { return loop_->port(); }

void Exchange::send(std::string host, uint16_t port, std::string blob) {
  loop_->post({Kind::SEND, std::move(host), port, std::move(blob)});
}

void Exchange::fetch(std::string host, uint16_t port, std::string expected_agent) {
  loop_->post({Kind::FETCH, std::move(host), port, std::move(expected_agent)});
}

void Exchange::invalidate(std::string host, uint16_t port, std::string agent) {
  loop_->post({Kind::INVALIDATE, std::move(host), port, std::move(agent)});
}

void Exchange::stop(Deadline deadline) { loop_->stop(deadline); }

}  // namespace nixl::metadata
