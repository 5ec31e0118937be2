// metadata/exchange.h - two agents meet by address: a listener, and the client that talks to one.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/status.h"
#include "metadata/channel.h"
#include "metadata/crypto.h"
#include "metadata/wire.h"

namespace nixl::metadata {

// Sends and fetches metadata blobs over TCP, and answers others that do. The frames have the form
// of the field's protocol (frame.h). Everything goes over one connection for each (host, port),
// which is kept and made again when it breaks; a fetch is answered on the connection that asked, so
// the asking side needs no listener.
//
// Threads:   any, for every method. Works in one thread of its own, which starts with the listener
//            or with the first message, and sleeps while there is nothing to do.
// Delivery:  send() and invalidate() are done once the peer has said so; a connection that breaks
//            before is made again and the message repeated, in order, so the peer may see it twice.
// Safety:    who sends metadata, or withdraws it, proves to be the incarnation that it speaks for.
//            With a key or certificates (Credentials) both ends of a connection prove that they
//            have them before anything else is said; without, anybody may ask. What is bounded:
//            connections, those of unknown ones from one address, messages, and every wait.
// Errors:    what becomes of a message is told by exchangeFailed(), unless all is well.
// Lifetime:  the host outlives stop(), which the destructor calls with no time to spare. In a child
//            after fork() nothing works, and destruction gives nothing back.
class Exchange {
 public:
  // Where metadata came from.
  class Source {
   public:
    // Who proved to have sent it, unasked; nullptr when it answers a fetch(), and so comes from
    // where the user said.
    virtual const Incarnation* sender() const = 0;
    // Whether this incarnation, loaded from a connection, still has that connection: then its
    // process lives, and nobody else can be its successor.
    virtual bool isConnected(const Incarnation& incarnation) const = 0;

   protected:
    ~Source() = default;
  };

  // Called from the exchange's thread with no lock held; while one runs, no other peer is served.
  // They may call send(), fetch() and invalidate(), and may not call stop().
  struct Host {
    virtual Result<std::string> localMetadata() = 0;
    // Gives the incarnation that was loaded. The host decides whether the sender may send it.
    virtual Result<Incarnation> load(std::string_view blob, const Source& source) = 0;
    // `sender` proved to ask for it.
    virtual Status invalidate(std::string_view agent, const Incarnation& sender) = 0;

    // `what` names the action and its object: "fetch metadata from 10.0.0.1:8888".
    virtual void exchangeFailed(std::string_view what, const Status& status) = 0;

   protected:
    ~Host() = default;
  };

  struct Options {
    bool listen = false;
    std::string address = {};  // numeric ones or "localhost", separated by commas; "": all of them
    uint16_t port = 0;         // 0: the system chooses

    std::shared_ptr<const Identity> identity = nullptr;        // nullptr: a new one
    std::shared_ptr<const Credentials> credentials = nullptr;  // nullptr: what the environment says

    // What is 0 is taken from the environment: the variables behind.
    std::chrono::milliseconds connect_timeout{0};  // NIXL_CONNECT_TIMEOUT_MS
    std::chrono::milliseconds greeting_timeout{0};  // NIXL_GREETING_TIMEOUT_MS: to say who one is
    std::chrono::milliseconds frame_timeout{5000};  // for a frame to come, plus 1 s for each MiB
    std::chrono::milliseconds answer_timeout{30'000};  // for a peer to answer
    std::chrono::milliseconds idle_timeout{600'000};   // until an unused connection is closed
    size_t max_connections = 0;  // NIXL_LISTEN_CONNECTIONS: of others to us
    size_t max_strangers = 0;    // NIXL_LISTEN_STRANGERS: of them, unknown ones from one address
    uint64_t max_message = 0;    // NIXL_LISTEN_MESSAGE_LIMIT: bytes
  };

  // Binds the listener, if one is wanted.
  static Result<std::unique_ptr<Exchange>> start(Host& host, Options options);
  ~Exchange();

  // Of the listener; 0 without one.
  uint16_t port() const;

  // These return at once. A peer that cannot be reached is tried again until the connect timeout,
  // so that it does not matter which of two agents starts first.
  void send(std::string host, uint16_t port, std::string blob);

  // Loads what the peer answers, unless it is of another agent than expected ("": of any).
  void fetch(std::string host, uint16_t port, std::string expected_agent);

  void invalidate(std::string host, uint16_t port, std::string agent);

  // Ends it. Messages to peers that can be reached still leave before the deadline; then all
  // connections are closed. Takes no longer than the deadline and a Host method that runs.
  void stop(base::Deadline deadline);

 private:
  class Loop;
  explicit Exchange(std::unique_ptr<Loop> loop);
  std::unique_ptr<Loop> loop_;
};

}  // namespace nixl::metadata
