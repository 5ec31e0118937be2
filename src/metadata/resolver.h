// metadata/resolver.h - host names to addresses, without making anyone wait.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/status.h"

namespace nixl::metadata {

// An IPv4 or IPv6 address with a port.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
  uint16_t port() const;
  std::string text() const;  // "10.0.0.1:8888", "[::1]:8888"
};

// Of a numeric address ("10.0.0.1", "fe80::1%eth0"); an error for a name. Never waits.
Result<SocketAddress> numericAddress(const std::string& host, uint16_t port);

// Why a connection cannot be made, by errno, and what to try.
Status connectFailure(const SocketAddress& address, int error);

// The system's name service may take half a minute and cannot be interrupted, so each look-up has a
// thread of its own, at most four at once; others queue.
//
// Threads:   all methods from the owner's thread.
// Lifetime:  look-ups that still run when stop() has waited long enough are left behind: they hold
//            nothing of the owner's. The destructor does not wait.
class Resolver {
 public:
  struct Answer {
    uint64_t id = 0;
    // In the order in which to try them. INVALID_PARAM: asking again is useless; NOT_FOUND: a name
    // that is not known, which one of a service that is just starting may become.
    Result<std::vector<SocketAddress>> addresses;
  };

  // `wake` is signalled when take() has something new.
  explicit Resolver(std::shared_ptr<base::EventFd> wake);
  ~Resolver();

  // The answer comes by take(), under `id`, also for numeric addresses.
  void look(uint64_t id, const std::string& host, uint16_t port);
  std::vector<Answer> take();

  // Waits for running look-ups until the deadline.
  void stop(base::Deadline deadline);

 private:
  struct Shared;
  static void run(std::shared_ptr<Shared> shared);
  std::shared_ptr<Shared> shared_;
};

}  // namespace nixl::metadata
