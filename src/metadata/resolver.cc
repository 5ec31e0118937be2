#include "metadata/resolver.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>

#include <cstring>
#include <deque>
#include <utility>

#include "base/mutex.h"
#include "metadata/quiet_thread.h"

namespace nixl::metadata {

namespace {

constexpr int kThreads = 4;

struct AddressList {
  addrinfo* first = nullptr;
  ~AddressList() {
    if (first != nullptr) freeaddrinfo(first);
  }
};

Result<std::vector<SocketAddress>> lookUp(const std::string& host, uint16_t port, int flags) {
  if (host.empty() || host.find('\0') != std::string::npos)
    return {Errc::INVALID_PARAM, "\"" + host + "\" is no host name"};
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  AddressList list;
  int failed = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list.first);
  if (failed != 0) {
    std::string why = failed == EAI_SYSTEM ? base::errnoText(errno) : gai_strerror(failed);
    return {Errc::NOT_FOUND, "look up host \"" + host + "\": " + why +
                                 "; check the name (getent hosts " + host +
                                 "), or give an address"};
  }
  std::vector<SocketAddress> addresses;
  for (const addrinfo* each = list.first; each != nullptr; each = each->ai_next) {
    if (each->ai_family != AF_INET && each->ai_family != AF_INET6) continue;
    SocketAddress address;
    address.length = each->ai_addrlen;
    std::memcpy(&address.storage, each->ai_addr, each->ai_addrlen);
    addresses.push_back(address);
  }
  if (addresses.empty())
    return {Errc::INVALID_PARAM, "look up host \"" + host + "\": it has no IP address"};
  return addresses;
}

}  // namespace

Status connectFailure(const SocketAddress& address, int error) {
  const char* advice = "";
  if (error == ECONNREFUSED)
    advice = "; nobody listens there: is the other agent up, made with enable_listen, and is this "
             "its listen_port?";
  if (error == EHOSTUNREACH || error == ENETUNREACH)
    advice = "; no network leads there: look at ip route, and at firewalls";
  if (error == EACCES || error == EPERM) advice = "; a firewall of this host forbids it";
  Status failure = base::errnoStatus("connect to " + address.text(), error);
  return {failure.code(), failure.message() + advice};
}

uint16_t SocketAddress::port() const {
  if (family() == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
  if (family() == AF_INET6)
    return ntohs(reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_port);
  return 0;
}

std::string SocketAddress::text() const {
  char host[NI_MAXHOST] = "";
  if (getnameinfo(get(), length, host, sizeof(host), nullptr, 0, NI_NUMERICHOST) != 0)
    return "unknown address";
  return (family() == AF_INET6 ? "[" + std::string(host) + "]" : std::string(host)) + ":" +
         std::to_string(port());
}

Result<SocketAddress> numericAddress(const std::string& host, uint16_t port) {
  NIXL_ASSIGN_OR_RETURN(auto addresses, lookUp(host, port, AI_NUMERICHOST));
  return addresses.front();
}

struct Resolver::Shared {
  struct Query {
    uint64_t id;
    std::string host;
    uint16_t port;
  };

  explicit Shared(std::shared_ptr<base::EventFd> event) : wake(std::move(event)) {}

  const std::shared_ptr<base::EventFd> wake;
  base::Mutex mu;  // a leaf
  base::CondVar changed;
  std::deque<Query> waiting NIXL_GUARDED_BY(mu);
  std::vector<Answer> answers NIXL_GUARDED_BY(mu);
  int running NIXL_GUARDED_BY(mu) = 0;
};

Resolver::Resolver(std::shared_ptr<base::EventFd> wake)
    : shared_(std::make_shared<Shared>(std::move(wake))) {}

Resolver::~Resolver() { stop(base::Deadline::after(std::chrono::milliseconds(0))); }

void Resolver::look(uint64_t id, const std::string& host, uint16_t port) {
  Result<SocketAddress> numeric = numericAddress(host, port);
  base::MutexLock lock(shared_->mu);
  if (numeric.has_value()) {
    shared_->answers.push_back({id, std::vector<SocketAddress>{*numeric}});
    shared_->wake->signal();
    return;
  }
  shared_->waiting.push_back({id, host, port});
  if (shared_->running == kThreads) return;
  Result<std::thread> thread = startQuietThread("nixl-resolver", [s = shared_] { run(s); });
  if (thread.has_value()) {
    ++shared_->running;
    thread->detach();
  } else if (shared_->running == 0) {
    shared_->waiting.pop_back();
    shared_->answers.push_back({id, std::move(thread).error()});
    shared_->wake->signal();
  }
}

// Works until nothing is left to look up.
void Resolver::run(std::shared_ptr<Shared> shared) {
  base::MutexLock lock(shared->mu);
  while (!shared->waiting.empty()) {
    Shared::Query query = std::move(shared->waiting.front());
    shared->waiting.pop_front();
    lock.unlock();
    Result<std::vector<SocketAddress>> found = lookUp(query.host, query.port, AI_ADDRCONFIG);
    // AI_ADDRCONFIG hides loopback's addresses on a host that has no others.
    if (!found.has_value()) found = lookUp(query.host, query.port, 0);
    lock.lock();
    shared->answers.push_back({query.id, std::move(found)});
    shared->wake->signal();
  }
  --shared->running;
  shared->changed.notifyAll();
}

std::vector<Resolver::Answer> Resolver::take() {
  base::MutexLock lock(shared_->mu);
  return std::exchange(shared_->answers, {});
}

void Resolver::stop(base::Deadline deadline) {
  base::MutexLock lock(shared_->mu);
  shared_->waiting.clear();
  while (shared_->running > 0 && !deadline.expired())
    shared_->changed.waitUntil(shared_->mu, deadline);
}

}  // namespace nixl::metadata
