// What the tests of the exchange share: hosts that remember, and peers without manners.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/bytes.h"
#include "base/fd.h"
#include "base/mutex.h"
#include "metadata/exchange.h"
#include "metadata/frame.h"
#include "metadata/handshake.h"
#include "metadata/wire.h"

namespace nixl::metadata {

using base::Deadline;
using base::Fd;
using std::chrono::milliseconds;
using std::chrono::seconds;

inline constexpr seconds kPatience(20);

inline std::string blobOf(const std::string& agent, size_t connection_bytes = 10,
                          const Incarnation& incarnation = {}) {
  Blob blob;
  blob.agent = agent;
  blob.incarnation = incarnation;
  blob.sections = {{.backend = "ALPHA",
                    .has_connection = true,
                    .connection = "NIXLCOMM:INVL" + std::string(connection_bytes, 'c')}};
  return encode(blob);
}

// Remembers what it is told.
class FakeHost final : public Exchange::Host {
 public:
  explicit FakeHost(std::string metadata = {}) : metadata_(std::move(metadata)) {}

  Result<std::string> localMetadata() override {
    if (metadata_.empty()) return {Errc::INVALID_PARAM, "no backend"};
    return metadata_;
  }
  Result<Incarnation> load(std::string_view bytes, const Exchange::Source& source) override {
    Result<Blob> blob = decode(bytes);
    if (!blob.has_value()) {
      note("bad load");
      return blob.error();
    }
    if (source.sender() != nullptr) {
      base::MutexLock lock(mu_);
      sender_ = *source.sender();
      known_ = source.isConnected(blob->incarnation);
    }
    if (delay.count() > 0) std::this_thread::sleep_for(delay);
    note("load " + blob->agent);
    return blob->incarnation;
  }
  Status invalidate(std::string_view agent, const Incarnation& sender) override {
    {
      base::MutexLock lock(mu_);
      sender_ = sender;
    }
    note("invalidate " + std::string(agent));
    return {};
  }
  void exchangeFailed(std::string_view what, const Status& status) override {
    note("failed " + std::string(what) + ": " + status.message());
  }

  std::vector<std::string> events() {
    base::MutexLock lock(mu_);
    return events_;
  }

  // Waits until `count` events begin with `start`; returns the last of them.
  std::string await(const std::string& start, size_t count = 1) {
    Deadline deadline = Deadline::after(kPatience);
    base::MutexLock lock(mu_);
    for (;;) {
      size_t found = 0;
      for (const std::string& event : events_)
        if (event.starts_with(start) && ++found == count) return event;
      if (deadline.expired()) break;
      changed_.waitUntil(mu_, deadline);
    }
    std::string all;
    for (const std::string& event : events_) all += "\n  " + event;
    ADD_FAILURE() << "waited for " << count << " x \"" << start << "\", there is:" << all;
    return {};
  }

  // Who proved to have sent the last thing that came unasked, and whether the agent that it was
  // about was connected already.
  std::pair<Incarnation, bool> lastSender() {
    base::MutexLock lock(mu_);
    return {sender_, known_};
  }

  milliseconds delay{0};

 private:
  void note(std::string event) {
    base::MutexLock lock(mu_);
    events_.push_back(std::move(event));
    changed_.notifyAll();
  }

  const std::string metadata_;
  base::Mutex mu_;
  base::CondVar changed_;
  std::vector<std::string> events_ NIXL_GUARDED_BY(mu_);
  Incarnation sender_ NIXL_GUARDED_BY(mu_);
  bool known_ NIXL_GUARDED_BY(mu_) = false;
};

inline std::unique_ptr<Exchange> startExchange(Exchange::Host& host, Exchange::Options options) {
  Result<std::unique_ptr<Exchange>> exchange = Exchange::start(host, options);
  EXPECT_TRUE(exchange.has_value()) << exchange.status().message();
  return exchange.has_value() ? *std::move(exchange) : nullptr;
}

inline std::unique_ptr<Exchange> listening(Exchange::Host& host,
                                           const std::string& address = "127.0.0.1") {
  return startExchange(host, {.listen = true, .address = address});
}

inline std::unique_ptr<Exchange> asking(Exchange::Host& host) {
  return startExchange(host, {.connect_timeout = milliseconds(3000)});
}

inline bool hasIpv6() {
  Fd fd(socket(AF_INET6, SOCK_STREAM, 0));
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  return fd && bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
}

// A peer without manners, over a blocking socket.
class RawPeer {
 public:
  explicit RawPeer(uint16_t port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = at(port);
    EXPECT_EQ(connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0)
        << base::errnoText(errno);
  }
  explicit RawPeer(Fd fd) : fd_(std::move(fd)) {}

  static sockaddr_in at(uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }

  bool send(std::string_view bytes) {
    return base::writeAll(fd_.get(), bytes.data(), bytes.size()).ok();
  }
  bool sendBody(std::string_view body) {
    base::ByteWriter out;
    out.u64(body.size());
    out.raw(body);
    return send(out.view());
  }

  // As one of ours does in clear, before it sends metadata.
  Digest greet() {
    Hello hello;
    hello.nonce.fill(7);
    EXPECT_TRUE(sendBody("NIXLCOMM:HELO" + encodeHello(hello)));
    std::string answer = receive();
    std::optional<Hello> theirs;
    if (answer.starts_with("NIXLCOMM:HELO")) theirs = decodeHello(answer.substr(13));
    EXPECT_TRUE(theirs.has_value()) << answer;
    if (!theirs) return {};
    return bindingOf(hello.nonce, theirs->nonce, theirs->incarnation);
  }
  // A message with its proof, as one string.
  static std::string proven(const Identity& identity, const Digest& binding, uint64_t number,
                            Word word, std::string_view payload) {
    std::string frames;
    appendFrame(frames, Word::SIGN,
                encodeProof(prove(identity, binding, number, word, payload)));
    appendFrame(frames, word, payload);
    return frames;
  }
  // What became of what was sent before.
  Status sync() {
    EXPECT_TRUE(sendBody("NIXLCOMM:SYNC" + std::string(8, '\1')));
    std::string answer = receive();
    EXPECT_TRUE(answer.starts_with("NIXLCOMM:DONE" + std::string(8, '\1'))) << answer;
    if (answer.size() < 25) return {Errc::UNKNOWN, "no answer"};
    return {static_cast<Errc>(static_cast<int>(base::loadLittle<uint32_t>(answer.data() + 21))),
            answer.substr(25)};
  }
  // The sentence of a refusal; "" when another message or the end comes.
  std::string denial() {
    std::string answer = receive();
    return answer.starts_with("NIXLCOMM:DENY") ? decodeDenial(answer.substr(13)).message() : "";
  }

  // The body of the next frame; "" when the connection ends or nothing comes.
  std::string receive() {
    char head[8];
    if (!read(head, 8)) return "";
    std::string body(base::loadLittle<uint64_t>(head), '\0');
    return read(body.data(), body.size()) ? body : "";
  }
  bool awaitEnd() {
    char byte;
    return awaitReadable() && recv(fd_.get(), &byte, 1, 0) <= 0;
  }
  void finishSending() { shutdown(fd_.get(), SHUT_WR); }
  int fd() const { return fd_.get(); }

 private:
  bool awaitReadable() {
    pollfd waiting = {fd_.get(), POLLIN, 0};
    return poll(&waiting, 1, 20'000) > 0;
  }
  bool read(char* to, size_t bytes) {
    while (bytes > 0) {
      if (!awaitReadable()) return false;
      ssize_t n = recv(fd_.get(), to, bytes, 0);
      if (n <= 0) return false;
      to += n;
      bytes -= static_cast<size_t>(n);
    }
    return true;
  }

  Fd fd_;
};

class RawListener {
 public:
  explicit RawListener(uint16_t port = 0) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    int one = 1;
    setsockopt(fd_.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    sockaddr_in address = RawPeer::at(port);
    socklen_t length = sizeof(address);
    EXPECT_EQ(bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
    EXPECT_EQ(listen(fd_.get(), 10), 0);
    getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
  }
  RawPeer accept() {
    pollfd waiting = {fd_.get(), POLLIN, 0};
    EXPECT_GT(poll(&waiting, 1, 20'000), 0) << "nobody connects";
    return RawPeer(Fd(accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC)));
  }
  uint16_t port() const { return port_; }
  int fd() const { return fd_.get(); }

 private:
  Fd fd_;
  uint16_t port_;
};

}  // namespace nixl::metadata
