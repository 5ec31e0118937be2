#include "metadata/exchange.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>
#include <thread>
#include <vector>

#include "metadata/exchange_suite.h"

namespace nixl::metadata {
namespace {

struct Meeting {
  const char* name;
  const char* listens_on;
  const char* asked_at;
  bool needs_ipv6;
};

class ExchangeMeets : public testing::TestWithParam<Meeting> {};

TEST_P(ExchangeMeets, AndFetchesSendsAndInvalidates) {
  if (GetParam().needs_ipv6 && !hasIpv6()) GTEST_SKIP() << "this host has no IPv6";
  FakeHost server_host(blobOf("server")), client_host(blobOf("client"));
  auto server = listening(server_host, GetParam().listens_on);
  ASSERT_NE(server->port(), 0);
  auto client = asking(client_host);
  EXPECT_EQ(client->port(), 0);

  client->fetch(GetParam().asked_at, server->port(), "server");
  client_host.await("load server");
  client->send(GetParam().asked_at, server->port(), blobOf("client"));
  client->invalidate(GetParam().asked_at, server->port(), "client");
  server_host.await("invalidate client");
  EXPECT_EQ(server_host.events(),
            (std::vector<std::string>{"load client", "invalidate client"}));
  EXPECT_EQ(client_host.events(), std::vector<std::string>{"load server"});
}

INSTANTIATE_TEST_SUITE_P(
    Addresses, ExchangeMeets,
    testing::Values(Meeting{"Ipv4", "127.0.0.1", "127.0.0.1", false},
                    Meeting{"Ipv6", "::1", "::1", true},
                    Meeting{"ByName", "127.0.0.1", "localhost", false},
                    Meeting{"ListenByName", "localhost", "localhost", false},
                    Meeting{"AllAddressesOverIpv4", "", "127.0.0.1", false},
                    Meeting{"AllAddressesOverIpv6", "", "::1", true},
                    Meeting{"AllAddressesByName", "", "localhost", false}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Exchange, BothSidesMayListen) {
  FakeHost a_host(blobOf("a")), b_host(blobOf("b"));
  auto a = listening(a_host), b = listening(b_host);
  a->fetch("127.0.0.1", b->port(), "b");
  b->fetch("127.0.0.1", a->port(), "");
  a_host.await("load b");
  b_host.await("load a");
}

TEST(Exchange, FetchOfAnotherAgentThanExpectedIsNotLoaded) {
  FakeHost server_host(blobOf("server")), client_host;
  auto server = listening(server_host);
  auto client = asking(client_host);
  client->fetch("127.0.0.1", server->port(), "decode-0");
  std::string failed = client_host.await("failed fetch metadata from 127.0.0.1:");
  EXPECT_NE(failed.find("asked for agent \"decode-0\", and agent \"server\" answered"),
            std::string::npos)
      << failed;
  client->fetch("127.0.0.1", server->port(), "server");
  client_host.await("load server");
  EXPECT_EQ(client_host.events().size(), 2u);
}

TEST(Exchange, FetchFromAnAgentWithoutMetadataSaysSo) {
  FakeHost server_host, client_host;
  auto server = listening(server_host);
  auto client = asking(client_host);
  client->fetch("127.0.0.1", server->port(), "");
  EXPECT_NE(client_host.await("failed fetch").find("no metadata to give"), std::string::npos);
  server_host.await("failed give metadata to 127.0.0.1");
}

TEST(Exchange, SenderLearnsThatThePeerCouldNotLoad) {
  FakeHost server_host, client_host;
  auto server = listening(server_host);
  auto client = asking(client_host);
  client->send("127.0.0.1", server->port(), "rubbish");
  EXPECT_NE(client_host.await("failed send metadata to 127.0.0.1:").find("something else"),
            std::string::npos);
  server_host.await("failed load metadata that 127.0.0.1:");
}

TEST(Exchange, LargeBlobsArriveWhole) {
  std::string big = blobOf("big", 40 << 20);
  FakeHost server_host(big), client_host;
  auto server = listening(server_host);
  auto client = asking(client_host);
  client->fetch("127.0.0.1", server->port(), "big");
  client_host.await("load big");
  client->send("127.0.0.1", server->port(), big);
  server_host.await("load big");
}

TEST(Exchange, ManyMessagesKeepTheirOrder) {
  FakeHost server_host(blobOf("server")), client_host;
  auto server = listening(server_host);
  auto client = asking(client_host);
  std::vector<std::string> expected;
  for (int i = 0; i < 500; ++i) {
    std::string name = "agent-" + std::to_string(i);
    client->send("127.0.0.1", server->port(), blobOf(name));
    expected.push_back("load " + name);
  }
  server_host.await("load agent-499");
  EXPECT_EQ(server_host.events(), expected);
}

TEST(Exchange, AnswersOneThatOnlySpeaksTheOldWordsAndHangsUp) {
  FakeHost host(blobOf("server"));
  auto server = listening(host);
  RawPeer peer(server->port());
  ASSERT_TRUE(peer.sendBody("NIXLCOMM:SENDtext that is ignored"));
  peer.finishSending();
  EXPECT_EQ(peer.receive(), "NIXLCOMM:LOAD" + blobOf("server"));
  EXPECT_TRUE(peer.awaitEnd());
}

TEST(Exchange, IgnoresWhatIsNoCommandAndStaysOpen) {
  FakeHost host(blobOf("server"));
  auto server = listening(host);
  RawPeer peer(server->port());
  for (std::string_view body : {"", "x", "NIXLCOMM:", "NIXLCOMM:WHAT", "text NIXLCOMM:SEND",
                                "NIXLCOMM:DONE", "NIXLCOMM:LOADbad"})
    ASSERT_TRUE(peer.sendBody(body));
  ASSERT_TRUE(peer.sendBody("NIXLCOMM:SEND"));
  EXPECT_EQ(peer.receive(), "NIXLCOMM:LOAD" + blobOf("server"));
  EXPECT_NE(host.await("failed load metadata that").find("without a proof"), std::string::npos);
}

TEST(Exchange, ClosesOnTooLongAMessage) {
  FakeHost host(blobOf("server"));
  auto server = listening(host);
  RawPeer peer(server->port());
  ASSERT_TRUE(peer.send("hello, world: this is no length"));
  EXPECT_NE(peer.denial().find("bytes is announced; at most 4096 are accepted"), std::string::npos);
  EXPECT_TRUE(peer.awaitEnd());
}

TEST(Exchange, ClosesOnHalfAMessageAndServesOthersMeanwhile) {
  FakeHost host(blobOf("server"));
  auto server = startExchange(
      host, {.listen = true, .address = "127.0.0.1", .frame_timeout = milliseconds(300)});
  RawPeer half(server->port()), other(server->port());
  ASSERT_TRUE(half.send(std::string("\x40\0\0\0\0\0\0\0NIXL", 12)));
  ASSERT_TRUE(other.sendBody("NIXLCOMM:SEND"));
  EXPECT_EQ(other.receive(), "NIXLCOMM:LOAD" + blobOf("server"));
  EXPECT_TRUE(half.awaitEnd());
}

TEST(Exchange, WaitsForASlowWriter) {
  FakeHost host(blobOf("server"));
  auto server = listening(host);
  RawPeer slow(server->port());
  std::string frame;
  appendFrame(frame, Word::SEND, {});
  for (char c : frame) {
    ASSERT_TRUE(slow.send({&c, 1}));
    std::this_thread::sleep_for(milliseconds(3));
  }
  EXPECT_EQ(slow.receive(), "NIXLCOMM:LOAD" + blobOf("server"));
}

TEST(Exchange, OneThatNeverReadsItsAnswersHoldsUpNobody) {
  FakeHost host(blobOf("server", 8 << 20));
  auto server = listening(host);
  RawPeer greedy(server->port());
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(greedy.sendBody("NIXLCOMM:SEND"));
  RawPeer other(server->port());
  ASSERT_TRUE(other.sendBody("NIXLCOMM:SEND"));
  EXPECT_EQ(other.receive().size(), 13 + blobOf("server", 8 << 20).size());
}

TEST(Exchange, ServesTwoHundredAtOnce) {
  FakeHost host(blobOf("server"));
  auto server = listening(host);
  std::vector<RawPeer> peers;
  for (int i = 0; i < 200; ++i) peers.emplace_back(server->port());
  for (RawPeer& peer : peers) ASSERT_TRUE(peer.sendBody("NIXLCOMM:SEND"));
  for (RawPeer& peer : peers) EXPECT_EQ(peer.receive(), "NIXLCOMM:LOAD" + blobOf("server"));
}

TEST(Exchange, ClosesTheOldestIdleConnectionAtItsLimit) {
  FakeHost host(blobOf("server"));
  auto server = startExchange(
      host, {.listen = true, .address = "127.0.0.1", .max_connections = 3});
  std::vector<RawPeer> peers;
  for (int i = 0; i < 4; ++i) {
    peers.emplace_back(server->port());
    ASSERT_TRUE(peers.back().sendBody("NIXLCOMM:SEND"));
    EXPECT_EQ(peers.back().receive(), "NIXLCOMM:LOAD" + blobOf("server"));
    std::this_thread::sleep_for(milliseconds(150));  // so long it might have asked again
  }
  EXPECT_TRUE(peers[0].awaitEnd());
  ASSERT_TRUE(peers[1].sendBody("NIXLCOMM:SEND"));
  EXPECT_EQ(peers[1].receive(), "NIXLCOMM:LOAD" + blobOf("server"));
}

TEST(Exchange, ClosesIdleConnectionsButThoseThatSayWhoIsAlive) {
  FakeHost server_host(blobOf("server")), client_host;
  auto server = startExchange(server_host, {.listen = true,
                                            .address = "127.0.0.1",
                                            .idle_timeout = milliseconds(50)});
  RawPeer idle(server->port()), informed(server->port());
  ASSERT_TRUE(idle.sendBody("no command"));
  ASSERT_TRUE(informed.sendBody("NIXLCOMM:SEND"));
  EXPECT_NE(informed.receive(), "");
  EXPECT_TRUE(idle.awaitEnd());
  std::this_thread::sleep_for(milliseconds(120));
  ASSERT_TRUE(informed.sendBody("NIXLCOMM:SEND"));
  EXPECT_NE(informed.receive(), "");
}

TEST(Exchange, MakesClosedConnectionsAgain) {
  FakeHost server_host(blobOf("server")), client_host;
  auto server = startExchange(server_host,
                              {.listen = true, .address = "127.0.0.1", .max_connections = 1});
  auto client = asking(client_host);
  for (size_t i = 1; i <= 3; ++i) {
    client->fetch("127.0.0.1", server->port(), "server");
    client_host.await("load server", i);
    std::this_thread::sleep_for(milliseconds(150));
    RawPeer other(server->port());  // takes its place
    ASSERT_TRUE(other.sendBody("NIXLCOMM:SEND"));
    EXPECT_NE(other.receive(), "");
    other.finishSending();
    EXPECT_TRUE(other.awaitEnd());
  }
  EXPECT_EQ(client_host.events().size(), 3u);
}

TEST(Exchange, SurvivesRunningOutOfDescriptors) {
  FakeHost host(blobOf("server"));
  auto server = listening(host);
  std::vector<Fd> hoard;
  RawPeer peer(server->port());
  ASSERT_TRUE(peer.sendBody("NIXLCOMM:SEND"));
  EXPECT_NE(peer.receive(), "");
  rlimit before;
  getrlimit(RLIMIT_NOFILE, &before);
  Fd late(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));  // while there are some
  rlimit few = before;
  few.rlim_cur = 3;  // fewer than are open; poll() wants to have one
  setrlimit(RLIMIT_NOFILE, &few);
  sockaddr_in address = RawPeer::at(server->port());
  ASSERT_EQ(connect(late.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_TRUE(peer.awaitEnd());  // was idle, and made room
  setrlimit(RLIMIT_NOFILE, &before);
  RawPeer waiting(std::move(late));
  ASSERT_TRUE(waiting.sendBody("NIXLCOMM:SEND"));
  EXPECT_EQ(waiting.receive(), "NIXLCOMM:LOAD" + blobOf("server"));
}

TEST(Exchange, PortInUseIsExplained) {
  FakeHost host;
  auto first = listening(host);
  for (std::string address : {"127.0.0.1", ""}) {
    Result<std::unique_ptr<Exchange>> second =
        Exchange::start(host, {.listen = true, .address = address, .port = first->port()});
    ASSERT_FALSE(second.has_value());
    std::string message = second.error().message();
    EXPECT_NE(message.find("port " + std::to_string(first->port())), std::string::npos) << message;
    EXPECT_NE(message.find("Address already in use; another process has it, choose another "
                           "listen_port, or 0"),
              std::string::npos)
        << message;
  }
}

TEST(Exchange, ListenAddressMustBeOneOfThisHost) {
  FakeHost host;
  for (std::string address : {"no-such-host", "203.0.113.7"}) {
    Result<std::unique_ptr<Exchange>> exchange =
        Exchange::start(host, {.listen = true, .address = address});
    ASSERT_FALSE(exchange.has_value());
    EXPECT_NE(exchange.error().message().find(address), std::string::npos);
  }
}

TEST(Exchange, WaitsForAPeerThatStartsLater) {
  FakeHost server_host(blobOf("server")), client_host;
  uint16_t port = RawListener().port();
  auto client = startExchange(client_host, {.connect_timeout = kPatience});
  client->fetch("localhost", port, "server");
  std::this_thread::sleep_for(milliseconds(100));
  auto server = startExchange(server_host, {.listen = true, .address = "127.0.0.1", .port = port});
  client_host.await("load server");
  EXPECT_EQ(client_host.events().size(), 1u);
}

TEST(Exchange, UnreachablePeersAreReported) {
  FakeHost host;
  uint16_t port = RawListener().port();
  auto client = startExchange(host, {.connect_timeout = milliseconds(200)});
  client->fetch("127.0.0.1", port, "");
  std::string failed = host.await("failed fetch metadata from 127.0.0.1:" + std::to_string(port));
  EXPECT_NE(failed.find("Connection refused"), std::string::npos) << failed;
  EXPECT_NE(failed.find("NIXL_CONNECT_TIMEOUT_MS"), std::string::npos) << failed;
  client->send("127.0.0.1", 0, "x");
  EXPECT_NE(host.await("failed send metadata to 127.0.0.1:0").find("port 0"), std::string::npos);
  client->send("", 1, "x");
  host.await("failed send metadata to :1");
  client->invalidate("name-that-nobody-has.invalid", 1, "x");
  failed = host.await("failed tell name-that-nobody-has.invalid:1");
}

TEST(Exchange, SendsAgainWhatAClosedConnectionSwallowed) {
  FakeHost host;
  RawListener listener;
  auto client = asking(host);
  client->send("127.0.0.1", listener.port(), blobOf("one"));
  client->invalidate("127.0.0.1", listener.port(), "two");
  auto greet = [](RawPeer& peer) {
    std::string hello = peer.receive();
    ASSERT_TRUE(hello.starts_with("NIXLCOMM:HELO")) << hello;
    peer.sendBody("NIXLCOMM:HELO" + encodeHello({}));
    ASSERT_TRUE(peer.receive().starts_with("NIXLCOMM:SIGN"));
  };
  {
    RawPeer first = listener.accept();
    greet(first);
    EXPECT_EQ(first.receive(), "NIXLCOMM:LOAD" + blobOf("one"));
  }  // closed without a word
  RawPeer second = listener.accept();
  greet(second);
  EXPECT_EQ(second.receive(), "NIXLCOMM:LOAD" + blobOf("one"));
  std::string sync = second.receive();
  ASSERT_TRUE(sync.starts_with("NIXLCOMM:SYNC"));
  second.sendBody("NIXLCOMM:DONE" + sync.substr(13, 8) + std::string(4, '\0'));
  ASSERT_TRUE(second.receive().starts_with("NIXLCOMM:SIGN"));
  EXPECT_EQ(second.receive(), "NIXLCOMM:INVLtwo");
  EXPECT_TRUE(host.events().empty());
}

TEST(Exchange, PeerRestartedOnItsPortGetsTheNextMessage) {
  FakeHost host, client_host;
  auto server = listening(host);
  uint16_t port = server->port();
  auto client = asking(client_host);
  client->send("127.0.0.1", port, blobOf("one"));
  host.await("load one");
  server.reset();
  server = startExchange(host, {.listen = true, .address = "127.0.0.1", .port = port});
  client->send("127.0.0.1", port, blobOf("two"));
  host.await("load two");
  EXPECT_TRUE(client_host.events().empty());
}

TEST(Exchange, GivesUpOnAPeerThatAlwaysHangsUp) {
  FakeHost host;
  std::optional<RawListener> listener(std::in_place);
  auto client = startExchange(host, {.connect_timeout = milliseconds(500)});
  client->fetch("127.0.0.1", listener->port(), "");
  for (int i = 0; i < 3; ++i) {
    RawPeer peer = listener->accept();
    EXPECT_EQ(peer.receive(), "NIXLCOMM:SEND");
  }
  listener.reset();
  host.await("failed fetch");
}

TEST(Exchange, GivesUpOnAPeerThatHangsUpAfterAWord) {
  FakeHost host;
  RawListener listener;
  auto client = asking(host);
  client->fetch("127.0.0.1", listener.port(), "");
  for (int i = 0; i < 3; ++i) {
    RawPeer peer = listener.accept();
    EXPECT_EQ(peer.receive(), "NIXLCOMM:SEND");
    peer.sendBody("a word");
  }
  EXPECT_NE(host.await("failed fetch").find("closed the connection"), std::string::npos);
}

TEST(Exchange, GivesUpOnAPeerThatNeverAnswers) {
  FakeHost host;
  RawListener listener;
  auto client = startExchange(host, {.answer_timeout = milliseconds(100)});
  client->fetch("127.0.0.1", listener.port(), "");
  RawPeer peer = listener.accept();
  EXPECT_NE(host.await("failed fetch").find("no answer within 100 ms"), std::string::npos);
}

TEST(Exchange, WhatWasHandedOverLeavesBeforeItStops) {
  for (int i = 0; i < 20; ++i) {
    FakeHost server_host, client_host;
    auto server = listening(server_host);
    auto client = asking(client_host);
    client->send("localhost", server->port(), blobOf("client", 1 << 20));
    client->invalidate("localhost", server->port(), "client");
    client->stop(Deadline::after(kPatience));
    client.reset();
    server_host.await("invalidate client");
  }
}

TEST(Exchange, StopsWithinItsDeadlineWhileBusy) {
  FakeHost server_host(blobOf("server", 32 << 20)), client_host;
  auto server = listening(server_host);
  auto client = asking(client_host);
  std::string big = blobOf("big", 32 << 20);
  RawListener silent;
  RawPeer greedy(server->port());
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(greedy.sendBody("NIXLCOMM:SEND"));
    client->fetch("127.0.0.1", server->port(), "");
    client->send("127.0.0.1", silent.port(), big);  // which nobody reads
    client->send("name-that-nobody-has.invalid", 9, "x");
    client->send("192.0.2.1", 9, "x");
  }
  std::this_thread::sleep_for(milliseconds(20));
  uint64_t start = base::nowNs();
  client->stop(Deadline::after(milliseconds(300)));
  server->stop(Deadline::after(milliseconds(300)));
  // Not a figure of merit: without the deadline it would be 10 s and more.
  EXPECT_LT(base::nowNs() - start, 5'000'000'000u);
  client->send("127.0.0.1", 9, "x");
  EXPECT_NE(client_host.await("failed send metadata to 127.0.0.1:9").find("being destroyed"),
            std::string::npos);
}

TEST(Exchange, MakesNoThreadUntilItIsNeeded) {
  auto threads = [] {
    std::string status = *base::readFile("/proc/self/status");
    return std::stoi(status.substr(status.find("Threads:") + 8));
  };
  FakeHost host;
  int before = threads();
  auto client = asking(host);
  EXPECT_EQ(threads(), before);
}

TEST(Exchange, IsInertInAForkedChild) {
  FakeHost server_host(blobOf("server")), client_host;
  auto server = listening(server_host);
  auto client = asking(client_host);
  client->fetch("127.0.0.1", server->port(), "");
  client_host.await("load server");
  pid_t child = fork();
  if (child == 0) {
    client->stop(Deadline::after(kPatience));
    client.reset();
    server.reset();
    _exit(0);
  }
  int status = 1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  client->fetch("127.0.0.1", server->port(), "");
  client_host.await("load server", 2);
}

TEST(Exchange, LeavesNoDescriptorToAProgramThatIsStarted) {
  auto inherited = [] {
    std::set<int> open;
    for (int fd = 3; fd < 256; ++fd) {
      int flags = fcntl(fd, F_GETFD);
      if (flags >= 0 && (flags & FD_CLOEXEC) == 0) open.insert(fd);
    }
    return open;
  };
  std::set<int> before = inherited();
  FakeHost server_host(blobOf("server")), client_host;
  auto server = listening(server_host);
  auto client = asking(client_host);
  client->fetch("127.0.0.1", server->port(), "");
  client_host.await("load server");
  EXPECT_EQ(inherited(), before);
}

}  // namespace
}  // namespace nixl::metadata
