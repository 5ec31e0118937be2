// Strangers, impostors, and those who only want to be in the way: the exchange against them.
#include <fmt/format.h>
#include <sys/resource.h>

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "metadata/channel.h"
#include "metadata/exchange.h"
#include "metadata/exchange_suite.h"
#include "metadata/tls_files.h"

namespace nixl::metadata {
namespace {

using Shared = std::shared_ptr<const Credentials>;
constexpr char kHere[] = "127.0.0.1";

Shared loaded(const Credentials::Files& files) {
  Result<Shared> credentials = Credentials::load(files);
  EXPECT_TRUE(credentials.has_value()) << credentials.status().message();
  return credentials.has_value() ? *credentials : nullptr;
}

Shared withKey(const Folder& folder, const std::string& key) {
  return loaded({.key = folder.write("key-" + key, key)});
}

std::unique_ptr<Exchange> serving(Exchange::Host& host, Shared credentials) {
  return startExchange(host, {.listen = true, .address = kHere, .credentials = credentials});
}

std::unique_ptr<Exchange> connecting(Exchange::Host& host, Shared credentials) {
  return startExchange(host, {.credentials = credentials, .connect_timeout = milliseconds(5000)});
}

void expectFound(const std::string& text, const std::string& word) {
  EXPECT_NE(text.find(word), std::string::npos) << text;
}

// Stands between a client and a listener, and may change or keep what goes through.
class Proxy {
 public:
  // `to_listener`: which way these bytes go.
  using Meddle = std::function<void(std::string& bytes, bool to_listener)>;

  Proxy(uint16_t target, Meddle meddle) : target_(target), meddle_(std::move(meddle)) {
    thread_ = std::thread([this] { run(); });
  }
  ~Proxy() {
    done_ = true;
    thread_.join();
  }
  uint16_t port() const { return listener_.port(); }
  // All that went to the listener over the first connection.
  std::string recorded() {
    base::MutexLock lock(mu_);
    return recorded_;
  }

 private:
  struct Pair {
    RawPeer client, server;
    bool first;
  };

  void run() {
    std::vector<Pair> pairs;
    bool first = true;
    while (!done_) {
      std::vector<pollfd> waiting = {{listener_.fd(), POLLIN, 0}};
      for (Pair& pair : pairs) {
        waiting.push_back({pair.client.fd(), POLLIN, 0});
        waiting.push_back({pair.server.fd(), POLLIN, 0});
      }
      if (poll(waiting.data(), waiting.size(), 20) <= 0) continue;
      for (size_t i = pairs.size(); i-- > 0;) {
        Pair& pair = pairs[i];
        bool open = true;
        if (waiting[1 + 2 * i].revents != 0)
          open = pass(pair.client, pair.server, true, pair.first);
        if (open && waiting[2 + 2 * i].revents != 0)
          open = pass(pair.server, pair.client, false, pair.first);
        if (!open) pairs.erase(pairs.begin() + static_cast<ptrdiff_t>(i));
      }
      if (waiting[0].revents != 0)
        pairs.push_back({listener_.accept(), RawPeer(target_), std::exchange(first, false)});
    }
  }
  bool pass(RawPeer& from, RawPeer& to, bool to_listener, bool first) {
    char bytes[65536];
    ssize_t n = recv(from.fd(), bytes, sizeof(bytes), 0);
    if (n <= 0) return false;
    std::string text(bytes, static_cast<size_t>(n));
    if (first && to_listener) {
      base::MutexLock lock(mu_);
      recorded_ += text;
    }
    if (meddle_) meddle_(text, to_listener);
    return text.empty() || to.send(text);
  }

  const uint16_t target_;
  const Meddle meddle_;
  RawListener listener_;
  std::atomic<bool> done_{false};
  base::Mutex mu_;
  std::string recorded_ NIXL_GUARDED_BY(mu_);
  std::thread thread_;
};

// --- in clear ----------------------------------------------------------------------------------

TEST(Strangers, AreNotBelievedWithoutAProof) {
  FakeHost host(blobOf("server"));
  auto server = listening(host);
  RawPeer stranger(server->port());
  for (std::string_view body : {"NIXLCOMM:INVLvictim", "NIXLCOMM:LOADx"}) {
    ASSERT_TRUE(stranger.sendBody(body));
    Status told = stranger.sync();
    EXPECT_EQ(told.code(), Errc::NOT_ALLOWED);
    expectFound(told.message(), "without a proof of who sent it");
  }
  ASSERT_TRUE(stranger.sendBody("NIXLCOMM:LOAD" + blobOf("victim")));
  EXPECT_EQ(stranger.sync().code(), Errc::NOT_ALLOWED);
  for (const std::string& event : host.events()) EXPECT_TRUE(event.starts_with("failed ")) << event;
}

TEST(Strangers, CannotUseWhatTheySaw) {
  FakeHost host(blobOf("server"));
  auto server = listening(host);
  auto identity = Identity::create();
  const std::string blob = blobOf("victim");
  RawPeer victim(server->port());
  const Digest binding = victim.greet();
  const std::string load = RawPeer::proven(*identity, binding, 0, Word::LOAD, blob);
  ASSERT_TRUE(victim.send(load));
  EXPECT_TRUE(victim.sync().ok());
  EXPECT_EQ(host.lastSender().first, identity->incarnation());

  auto expectRefused = [&](RawPeer& peer, const std::string& bytes) {
    ASSERT_TRUE(peer.send(bytes));
    Status told = peer.sync();
    EXPECT_EQ(told.code(), Errc::NOT_ALLOWED);
    expectFound(told.message(), "altered on its way, or recorded elsewhere");
  };
  expectRefused(victim, load);  // injected into the same connection
  {
    RawPeer stranger(server->port());
    (void)stranger.greet();
    expectRefused(stranger, load);  // in another one
  }
  {
    RawPeer stranger(server->port());  // without a number of the listener's
    expectRefused(stranger, load);
  }
  {
    // Its own proof, under the key of somebody else.
    RawPeer stranger(server->port());
    auto own = Identity::create();
    const Digest other = stranger.greet();
    std::string forged = RawPeer::proven(*own, other, 0, Word::INVL, "victim");
    forged.replace(8 + 13, 32, viewOf(identity->publicKey()));
    expectRefused(stranger, forged);
  }
  EXPECT_EQ(host.events().front(), "load victim");
  for (size_t i = 1; i < host.events().size(); ++i)
    EXPECT_TRUE(host.events()[i].starts_with("failed ")) << host.events()[i];
}

TEST(Strangers, CannotAlterAMessageOnItsWay) {
  FakeHost host(blobOf("server")), client_host;
  auto server = listening(host);
  Proxy proxy(server->port(), [](std::string& bytes, bool to_listener) {
    const size_t at = bytes.find("agent-1");
    if (to_listener && at != std::string::npos) bytes[at + 6] = '2';
  });
  auto client = asking(client_host);
  client->invalidate(kHere, proxy.port(), "agent-1");
  expectFound(client_host.await("failed tell"), "altered on its way");
  for (const std::string& event : host.events()) EXPECT_TRUE(event.starts_with("failed ")) << event;
}

TEST(Strangers, HostLearnsWhoSentAndWhoIsStillThere) {
  FakeHost host(blobOf("server")), one_host, two_host;
  auto server = listening(host);
  auto one_identity = Identity::create(), two_identity = Identity::create();
  auto one = startExchange(one_host, {.identity = one_identity});
  auto two = startExchange(two_host, {.identity = two_identity});
  const std::string blob = blobOf("one", 10, one_identity->incarnation());
  one->send(kHere, server->port(), blob);
  host.await("load one", 1);
  EXPECT_EQ(host.lastSender(), std::pair(one_identity->incarnation(), false));
  two->send(kHere, server->port(), blob);
  host.await("load one", 2);
  EXPECT_EQ(host.lastSender(), std::pair(two_identity->incarnation(), true));
  one.reset();
  two.reset();
  for (size_t i = 3;; ++i) {  // until the listener has seen both ends
    auto third = startExchange(two_host, {.identity = two_identity});
    third->send(kHere, server->port(), blob);
    host.await("load one", i);
    if (!host.lastSender().second) break;
    ASSERT_LT(i, 1000u);
  }
}

TEST(Strangers, MayNotSendMuchBeforeTheySayWhatTheyWant) {
  FakeHost host(blobOf("server"));
  auto server = startExchange(host, {.listen = true, .address = kHere, .max_message = 100'000});
  {
    RawPeer stranger(server->port());
    ASSERT_TRUE(stranger.sendBody("NIXLCOMM:LOAD" + std::string(8000, 'x')));
    expectFound(stranger.denial(), "at most 4096 are accepted");
    EXPECT_TRUE(stranger.awaitEnd());
  }
  RawPeer peer(server->port());
  (void)peer.greet();
  ASSERT_TRUE(peer.sendBody("NIXLCOMM:LOAD" + std::string(99'000, 'x')));
  EXPECT_FALSE(peer.sync().ok());
  ASSERT_TRUE(peer.sendBody("NIXLCOMM:LOAD" + std::string(101'000, 'x')));
  expectFound(peer.denial(), "at most 100000 are accepted");
}

TEST(Strangers, WhoSaysNothingIsClosed) {
  FakeHost host(blobOf("server"));
  auto server = startExchange(
      host, {.listen = true, .address = kHere, .greeting_timeout = milliseconds(200)});
  RawPeer silent(server->port()), started(server->port()), half_open(server->port());
  ASSERT_TRUE(started.send("\x0d"));
  half_open.finishSending();
  EXPECT_TRUE(silent.awaitEnd());
  EXPECT_TRUE(started.awaitEnd());
  EXPECT_TRUE(half_open.awaitEnd());
}

// Each round sends a byte more of a message that never ends.
class SlowPeers {
 public:
  SlowPeers(uint16_t port, size_t count) : port_(port), peers_(count) {
    thread_ = std::thread([this] {
      while (!done_) {
        for (std::optional<RawPeer>& peer : peers_) {
          if (done_) return;
          if (!peer) peer.emplace(port_);
          // Closed ones come again.
          if (::send(peer->fd(), "\0", 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) peer.reset();
        }
        std::this_thread::sleep_for(milliseconds(50));
      }
    });
  }
  ~SlowPeers() {
    done_ = true;
    thread_.join();
  }

 private:
  const uint16_t port_;
  std::vector<std::optional<RawPeer>> peers_;
  std::atomic<bool> done_{false};
  std::thread thread_;
};

TEST(Strangers, HundredsOfSlowOnesKeepNobodyOut) {
  Folder folder;
  for (const Shared& credentials : {loaded({}), withKey(folder, "a key of all of us")}) {
    FakeHost host(blobOf("server")), client_host;
    auto server = startExchange(host, {.listen = true,
                                       .address = kHere,
                                       .credentials = credentials,
                                       .max_connections = 200,
                                       .max_strangers = 100});
    SlowPeers slow(server->port(), 400);
    for (int i = 0; i < 5; ++i) {
      auto client = startExchange(client_host, {.credentials = credentials,
                                                .connect_timeout = kPatience});
      client->fetch(kHere, server->port(), "server");
      client_host.await("load server", static_cast<size_t>(i) + 1);
      client->send(kHere, server->port(), blobOf("client"));
      host.await("load client", static_cast<size_t>(i) + 1);
    }
  }
}

TEST(Strangers, WhoIsKnownKeepsItsConnectionInAFlood) {
  FakeHost host(blobOf("server"));
  auto server = startExchange(host, {.listen = true, .address = kHere, .max_connections = 10,
                                     .max_strangers = 5});
  auto identity = Identity::create();
  RawPeer known(server->port());
  ASSERT_TRUE(known.send(
      RawPeer::proven(*identity, known.greet(), 0, Word::LOAD, blobOf("known"))));
  EXPECT_TRUE(known.sync().ok());
  for (int i = 0; i < 200; ++i) {
    RawPeer stranger(server->port());
    if (i % 3 == 0) (void)stranger.sendBody("NIXLCOMM:SEND");
    if (i % 10 == 0) std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_TRUE(known.sync().ok());
}

// --- a key -------------------------------------------------------------------------------------

TEST(Key, AgentsThatHaveItMeet) {
  Folder folder;
  Shared key = withKey(folder, "a key of all of us");
  const std::string big = blobOf("big", 20 << 20);
  FakeHost server_host(big), client_host;
  auto server = serving(server_host, key);
  auto client = connecting(client_host, key);
  client->fetch(kHere, server->port(), "big");
  client_host.await("load big");
  client->send(kHere, server->port(), big);
  server_host.await("load big");
  std::vector<std::string> expected = {"load big"};
  for (int i = 0; i < 100; ++i) {
    client->send(kHere, server->port(), blobOf("agent-" + std::to_string(i)));
    expected.push_back("load agent-" + std::to_string(i));
  }
  client->invalidate(kHere, server->port(), "client");
  server_host.await("invalidate client");
  expected.push_back("invalidate client");
  EXPECT_EQ(server_host.events(), expected);
  EXPECT_EQ(client_host.events(), std::vector<std::string>{"load big"});
}

TEST(Key, ManyAnswersAtOnceComeWhole) {
  Folder folder;
  Shared key = withKey(folder, "a key of all of us");
  FakeHost server_host(blobOf("server", 300'000)), client_host;
  auto server = serving(server_host, key);
  auto client = connecting(client_host, key);
  for (int i = 0; i < 100; ++i) client->fetch(kHere, server->port(), "server");
  client_host.await("load server", 100);
}

struct Unlike {
  const char* name;
  const char* ours;    // of the client: "", "key", "other key", "tls" or "both"
  const char* theirs;  // of the listener
  const char* told;    // to the client
};

class Meeting : public testing::TestWithParam<Unlike> {
 protected:
  Shared credentials(const std::string& kind) {
    Credentials::Files files;
    if (kind == "tls" || kind == "both") files = host_.in(folder_, "host", authority_);
    if (kind == "key" || kind == "both") files.key = folder_.write("key", "a key of all of us");
    if (kind == "other key") files.key = folder_.write("other", "a key of others, not us");
    return loaded(files);
  }

  Folder folder_;
  Certificate authority_ = Certificate::authority("authority");
  Certificate host_ = authority_.issue("host");
};

class Unequal : public Meeting {};

TEST_P(Unequal, EndsWithASentenceAndWithoutMetadata) {
  FakeHost server_host(blobOf("server")), client_host(blobOf("client"));
  auto server = serving(server_host, credentials(GetParam().theirs));
  auto client = connecting(client_host, credentials(GetParam().ours));
  client->fetch(kHere, server->port(), "");
  expectFound(client_host.await("failed fetch"), GetParam().told);
  client->send(kHere, server->port(), blobOf("client"));
  expectFound(client_host.await("failed send"), GetParam().told);
  EXPECT_EQ(client_host.events().size(), 2u);
  EXPECT_TRUE(server_host.events().empty());
}

INSTANTIATE_TEST_SUITE_P(
    Ends, Unequal,
    testing::Values(
        Unlike{"OtherKey", "other key", "key", "its key is another one"},
        Unlike{"KeyOnlyHere", "key", "", "neither NIXL_AUTH_KEY_FILE nor"},
        Unlike{"KeyOnlyThere", "", "key", "speaks in clear, and here NIXL_AUTH_KEY_FILE is set"},
        Unlike{"TlsOnlyHere", "tls", "", "neither NIXL_AUTH_KEY_FILE nor"},
        Unlike{"TlsOnlyThere", "", "tls", "in clear, and here NIXL_TLS_CERT_FILE"},
        Unlike{"KeyMeetsTls", "key", "tls", "compare NIXL_TLS_CERT_FILE here"},
        Unlike{"TlsMeetsKey", "tls", "key", "the peer's certificate is not accepted"},
        Unlike{"TlsMeetsBoth", "tls", "both", "it does not prove a key"},
        Unlike{"BothMeetTls", "both", "tls", "and here none is set"},
        Unlike{"BothMeetKey", "both", "key", "the peer's certificate is not accepted"},
        Unlike{"BothMeetNone", "both", "", "neither NIXL_AUTH_KEY_FILE nor"}),
    [](const auto& info) { return std::string(info.param.name); });

class Equal : public Meeting {};

TEST_P(Equal, Works) {
  for (std::string address : {"127.0.0.1", "::1", "localhost"}) {
    if (address == "::1" && !hasIpv6()) continue;
    FakeHost server_host(blobOf("server")), client_host(blobOf("client"));
    auto server = startExchange(server_host, {.listen = true,
                                              .address = "localhost",
                                              .credentials = credentials(GetParam().theirs)});
    auto client = connecting(client_host, credentials(GetParam().ours));
    client->fetch(address, server->port(), "server");
    client_host.await("load server");
    client->send(address, server->port(), blobOf("client"));
    server_host.await("load client");
    client->invalidate(address, server->port(), "client");
    server_host.await("invalidate client");
  }
}

INSTANTIATE_TEST_SUITE_P(Ends, Equal,
                         testing::Values(Unlike{"Open", "", "", ""},
                                         Unlike{"Key", "key", "key", ""},
                                         Unlike{"Tls", "tls", "tls", ""},
                                         Unlike{"Both", "both", "both", ""}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Key, ARecordedSessionIsOfNoUse) {
  Folder folder;
  Shared key = withKey(folder, "a key of all of us");
  FakeHost host(blobOf("server")), client_host;
  auto server = serving(host, key);
  Proxy proxy(server->port(), nullptr);
  {
    auto client = connecting(client_host, key);
    client->fetch(kHere, proxy.port(), "server");
    client_host.await("load server");
    client->send(kHere, proxy.port(), blobOf("client"));
    host.await("load client");
  }
  const std::string recorded = proxy.recorded();
  ASSERT_GT(recorded.size(), 500u);
  EXPECT_EQ(recorded.find("NIXL"), std::string::npos);  // nothing of it can be read
  RawPeer replay(server->port());
  ASSERT_TRUE(replay.send(recorded));
  while (!replay.awaitEnd()) {
  }
  EXPECT_EQ(host.events(), std::vector<std::string>{"load client"});
}

TEST(Key, NothingCanBeChangedDroppedOrRepeatedOnItsWay) {
  Folder folder;
  Shared key = withKey(folder, "a key of all of us");
  for (const char* what : {"change", "drop", "repeat"}) {
    FakeHost host(blobOf("server")), client_host;
    auto server = serving(host, key);
    std::atomic<size_t> passed{0};
    std::atomic<int> meddled{0};
    Proxy proxy(server->port(), [&](std::string& bytes, bool to_listener) {
      if (!to_listener) return;
      const size_t before = passed.fetch_add(bytes.size());
      if (before < 5000 || meddled++ > 0) return;  // the greeting, and once is enough
      if (std::string_view(what) == "change") bytes[bytes.size() / 2] ^= 1;
      if (std::string_view(what) == "drop") bytes.clear();
      if (std::string_view(what) == "repeat") bytes += bytes;
    });
    auto client = connecting(client_host, key);
    // It goes again over another connection, so some may come twice.
    for (int i = 0; i < 60; ++i)
      client->send(kHere, proxy.port(), blobOf("agent-" + std::to_string(i) + ".", 5000));
    for (int i = 0; i < 60; ++i) host.await("load agent-" + std::to_string(i) + ".");
    EXPECT_GT(meddled, 0) << what;
    EXPECT_TRUE(client_host.events().empty()) << client_host.events().front();
    for (const std::string& event : host.events()) EXPECT_TRUE(event.starts_with("load agent-"));
  }
}

TEST(Key, WhatIsSentBackToItsSenderProvesNothing) {
  Folder folder;
  Shared key = withKey(folder, "a key of all of us");
  FakeHost client_host;
  RawListener mirror;
  auto client = startExchange(client_host,
                              {.credentials = key, .connect_timeout = milliseconds(300)});
  client->fetch(kHere, mirror.port(), "");
  RawPeer peer = mirror.accept();
  char bytes[4096];
  ssize_t n = recv(peer.fd(), bytes, sizeof(bytes), 0);
  ASSERT_GT(n, 0);
  ASSERT_TRUE(peer.send({bytes, static_cast<size_t>(n)}));
  client_host.await("failed fetch");
}

TEST(Key, OneInTheMiddleWithoutItIsNoticed) {
  Folder folder;
  Shared key = withKey(folder, "a key of all of us");
  // TLS there is with both ends; but neither end's proof is good for the other's channel.
  FakeHost client_host, middle_host(blobOf("middle"));
  auto middle = serving(middle_host, withKey(folder, "one that was made up"));
  auto client = connecting(client_host, key);
  client->fetch(kHere, middle->port(), "");
  expectFound(client_host.await("failed fetch"), "key is another one");
  EXPECT_EQ(client_host.events().size(), 1u);
}

TEST(Key, SilentAndSlowOnesAreClosedBeforeTheyAreKnown) {
  Folder folder;
  FakeHost host(blobOf("server"));
  auto server = startExchange(host, {.listen = true,
                                     .address = kHere,
                                     .credentials = withKey(folder, "a key of all of us"),
                                     .greeting_timeout = milliseconds(200)});
  RawPeer silent(server->port()), begun(server->port());
  const char start[] = {0x16, 3, 1, 2, 0, 1, 0, 1, 0x7c, 3, 3};  // of TLS, and no more
  ASSERT_TRUE(begun.send({start, sizeof(start)}));
  EXPECT_TRUE(silent.awaitEnd());
  EXPECT_TRUE(begun.awaitEnd());
}

TEST(Key, RubbishIsRefused) {
  Folder folder;
  FakeHost host(blobOf("server"));
  auto server = serving(host, withKey(folder, "a key of all of us"));
  for (const std::string& bytes :
       {std::string("GET / HTTP/1.1\r\n\r\n"), std::string(4096, '\xff'), std::string(4096, '\0'),
        std::string("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", 10) + std::string(500, 'x')}) {
    RawPeer peer(server->port());
    ASSERT_TRUE(peer.send(bytes));
    peer.finishSending();
    while (!peer.awaitEnd()) {
    }
  }
  EXPECT_TRUE(host.events().empty());
}

// --- certificates ------------------------------------------------------------------------------

struct Wrong {
  const char* name;
  Certificate::Options theirs;  // of the listener's certificate
  Certificate::Options ours;    // of the client's
  bool other_authority;         // signed the client's
  const char* told;             // to the client
};

class Certificates : public testing::TestWithParam<Wrong> {};

TEST_P(Certificates, ThatAreWrongAreRefused) {
  Folder folder;
  const Certificate authority = Certificate::authority("authority");
  const Certificate other = Certificate::authority("another authority");
  FakeHost server_host(blobOf("server")), client_host;
  auto server = serving(server_host, loaded(authority.issue("server", GetParam().theirs)
                                                .in(folder, "server", authority)));
  auto client = connecting(
      client_host,
      loaded((GetParam().other_authority ? other : authority)
                 .issue("client", GetParam().ours)
                 .in(folder, "client", authority)));
  client->fetch(kHere, server->port(), "");
  expectFound(client_host.await("failed fetch"), GetParam().told);
  EXPECT_EQ(client_host.events().size(), 1u);
  EXPECT_TRUE(server_host.events().empty());
}

INSTANTIATE_TEST_SUITE_P(
    All, Certificates,
    testing::Values(
        Wrong{"ClientOfAnotherAuthority", {}, {}, true, "does not accept this agent's certificate"},
        Wrong{"ExpiredListener", {.from_s = -100, .to_s = -50}, {}, false, "has expired"},
        Wrong{"ExpiredClient", {}, {.from_s = -100, .to_s = -50}, false, "certificate expired"},
        Wrong{"ListenerOfTomorrow", {.from_s = 1000}, {}, false, "compare the clocks"},
        Wrong{"ListenerOfAnotherName", {.names = "DNS:elsewhere,IP:10.0.0.1"}, {}, false,
              "not made out to \"127.0.0.1\""},
        Wrong{"ListenerOfNoName", {.names = ""}, {}, false, "NIXL_TLS_CHECK_NAME=no"},
        Wrong{"ListenerThatIsOnlyAClient", {.usage = "clientAuth"}, {}, false,
              "let it allow clients and servers"},
        Wrong{"ClientThatIsOnlyAServer", {}, {.usage = "serverAuth"}, false,
              "does not accept this agent's certificate"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Certificates, NameNeedNotBeCheckedWhereTheAuthorityIsEnough) {
  Folder folder;
  const Certificate authority = Certificate::authority("authority");
  FakeHost server_host(blobOf("server")), client_host;
  Credentials::Files theirs =
      authority.issue("server", {.names = "DNS:elsewhere"}).in(folder, "server", authority);
  Credentials::Files ours =
      authority.issue("client", {.names = ""}).in(folder, "client", authority);
  ours.check_name = false;
  auto server = serving(server_host, loaded(theirs));
  auto client = connecting(client_host, loaded(ours));
  client->fetch(kHere, server->port(), "");
  client_host.await("load server");
}

TEST(Certificates, ListenerOfAnotherAuthorityIsNotBelieved) {
  Folder folder;
  const Certificate authority = Certificate::authority("authority");
  const Certificate other = Certificate::authority("another authority");
  FakeHost server_host(blobOf("server")), client_host;
  auto server = serving(server_host, loaded(other.issue("server").in(folder, "server", authority)));
  auto client =
      connecting(client_host, loaded(authority.issue("client").in(folder, "client", authority)));
  client->fetch(kHere, server->port(), "");
  expectFound(client_host.await("failed fetch"), "NIXL_TLS_CA_FILE must hold the authority");
}

// --- where it listens --------------------------------------------------------------------------

TEST(ListenAddress, MayBeSeveral) {
  if (!hasIpv6()) GTEST_SKIP() << "this host has no IPv6";
  FakeHost server_host(blobOf("server")), client_host;
  auto server = startExchange(server_host,
                              {.listen = true, .address = "127.0.0.1, ::1,127.0.0.2,127.0.0.1"});
  auto client = asking(client_host);
  size_t met = 0;
  for (const char* address : {"127.0.0.1", "::1", "127.0.0.2"}) {
    client->fetch(address, server->port(), "server");
    client_host.await("load server", ++met);
  }
  RawListener taken;  // of the same port elsewhere: 127.0.0.3 is not listened on
  auto lonely = startExchange(client_host, {.connect_timeout = milliseconds(100)});
  lonely->fetch("127.0.0.3", server->port(), "server");
  client_host.await("failed fetch metadata from 127.0.0.3");
}

TEST(ListenAddress, AllOfThemMustBeGood) {
  FakeHost host;
  for (std::string address : {"127.0.0.1,no-such-host", "127.0.0.1,203.0.113.7", ",", " , "}) {
    Result<std::unique_ptr<Exchange>> exchange =
        Exchange::start(host, {.listen = true, .address = address});
    EXPECT_FALSE(exchange.has_value()) << address;
    if (address.find("no-such") != std::string::npos)
      expectFound(exchange.error().message(), "NIXL_LISTEN_ADDRESS");
  }
}

}  // namespace
}  // namespace nixl::metadata
