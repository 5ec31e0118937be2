// The library with an engine that misbehaves: nothing hangs, crashes or is believed that is not so.
// That transfers still work where they can is seen by suite_test.cc.

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "nixl/agent.h"

namespace nixl {

void PrintTo(Errc code, std::ostream* out) { *out << errcName(code); }
void PrintTo(XferState state, std::ostream* out) { *out << xferStateName(state); }

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kPatience = 20s;
constexpr size_t kSize = 10'000;

AgentConfig config(const Params& params) {
  AgentConfig c;
  c.backends = {"HOSTILE"};
  c.backend_params["HOSTILE"] = params;
  return c;
}

struct Failure {
  Errc code = Errc::OK;
  std::string text;
};

Failure failureOf(const std::function<void()>& call) {
  try {
    call();
    return {};
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
}

// An agent with two buffers that moves one into the other.
struct Scene {
  using Options = std::initializer_list<Params::value_type>;

  explicit Scene(Options options, const std::string& name = "a") : agent(name, config(options)) {}
  Scene(const Scene&) = delete;

  void registerBoth() {
    agent.registerMemory({{from.data(), kSize}}, "HOSTILE");
    agent.registerMemory({{to.data(), kSize}}, "HOSTILE");
  }
  Transfer prepare(std::chrono::nanoseconds timeout = 0ns) {
    TransferOptions options;
    options.timeout = timeout;
    std::vector<MemDescriptor> local, remote;
    for (size_t i = 0; i < 10; ++i) {  // apart, so that they stay ten pieces
      local.emplace_back(&from[i * 1000], 900);
      remote.emplace_back(&to[i * 1000], 900);
    }
    return agent.prepareTransfer(OpType::WRITE, local, remote, agent.name(), options);
  }
  XferState run(Transfer transfer) {
    agent.postTransfer(transfer);
    return agent.waitTransfer(transfer, kPatience);
  }

  std::vector<char> from = std::vector<char>(kSize, 'x'), to = std::vector<char>(kSize, '-');
  Agent agent;  // goes before the memory
};

std::string errorOf(Agent& agent, Transfer transfer) {
  std::string text;
  agent.transferError(transfer, &text);
  return text;
}

bool readable(const std::string& text) {
  return std::ranges::all_of(text, [](unsigned char c) { return c >= ' ' && c < 0x7F; });
}

// ---- calls that fail once -------------------------------------------------------------------

TEST(Hostile, CreateFails) {
  const Failure failure = failureOf([] { Scene scene({{"fail", "create"}}); });
  EXPECT_EQ(failure.code, Errc::BACKEND);
  EXPECT_NE(failure.text.find("engine HOSTILE: create: it was asked to fail once"),
            std::string::npos)
      << failure.text;
}

TEST(Hostile, LocalInfoFails) {
  EXPECT_EQ(failureOf([] { Scene scene({{"fail", "local_info"}}); }).code, Errc::BACKEND);
}

class FailingRegistration : public testing::TestWithParam<const char*> {};

TEST_P(FailingRegistration, IsToldAndMayBeRepeated) {
  Scene scene({{"fail", GetParam()}});
  const Failure failure = failureOf([&] { scene.registerBoth(); });
  EXPECT_EQ(failure.code, Errc::BACKEND);
  EXPECT_NE(failure.text.find("it was asked to fail once"), std::string::npos) << failure.text;
  scene.registerBoth();
  EXPECT_EQ(scene.run(scene.prepare()), XferState::DONE);
}

INSTANTIATE_TEST_SUITE_P(Calls, FailingRegistration,
                         testing::Values("register_memory", "public_key"));

TEST(Hostile, PrepareFails) {
  Scene scene({{"fail", "prepare"}});
  scene.registerBoth();
  EXPECT_EQ(failureOf([&] { scene.prepare(); }).code, Errc::BACKEND);
  EXPECT_EQ(scene.run(scene.prepare()), XferState::DONE);
}

TEST(Hostile, PostFails) {
  Scene scene({{"fail", "post"}});
  scene.registerBoth();
  const Transfer transfer = scene.prepare();
  EXPECT_EQ(scene.run(transfer), XferState::FAILED);
  EXPECT_EQ(scene.agent.transferError(transfer), Errc::BACKEND);
  EXPECT_EQ(errorOf(scene.agent, transfer), "HOSTILE: WRITE to \"a\": it was asked to fail once");
  EXPECT_EQ(scene.run(transfer), XferState::DONE);
}

// Posts and cancels, and waits for the end, which may be either.
void cancelInFlight(Scene& scene) {
  scene.registerBoth();
  const Transfer transfer = scene.prepare();
  scene.agent.postTransfer(transfer);
  scene.agent.cancelTransfer(transfer);
  const XferState state = scene.agent.waitTransfer(transfer, kPatience);
  EXPECT_TRUE(state == XferState::DONE || state == XferState::CANCELED) << xferStateName(state);
}

TEST(Hostile, CancelFails) {
  Scene scene({{"fail", "cancel"}, {"delay_us", "100000"}});
  cancelInFlight(scene);
}

TEST(Hostile, DeregisterFails) {
  Scene scene({{"fail", "deregister"}});
  const Memory memory = scene.agent.registerMemory({{scene.from.data(), kSize}}, "HOSTILE");
  EXPECT_EQ(failureOf([&] { scene.agent.deregisterMemory(memory); }).code, Errc::BACKEND);
  scene.registerBoth();
  EXPECT_EQ(scene.run(scene.prepare()), XferState::DONE);
}

TEST(Hostile, NotifyFails) {
  Scene scene({{"fail", "notify"}});
  EXPECT_EQ(failureOf([&] { scene.agent.sendNotification("a", "one"); }).code, Errc::BACKEND);
  scene.agent.sendNotification("a", "two");
  const auto came = scene.agent.takeNotifications();
  ASSERT_EQ(came.size(), 1u);
  EXPECT_EQ(came[0].message, "two");
}

TEST(Hostile, TheNotificationOfATransferFails) {
  Scene scene({{"fail", "notify"}});
  scene.registerBoth();
  const Transfer transfer = scene.prepare();
  scene.agent.postTransfer(transfer, "it is there");
  EXPECT_EQ(scene.agent.waitTransfer(transfer, kPatience), XferState::FAILED);
  EXPECT_NE(errorOf(scene.agent, transfer).find("it was asked to fail once"), std::string::npos);
}

// Whether connecting or loading a key fails: the first of these is told at once, the second is tried
// again when the key is needed.
class FailingMeeting : public testing::TestWithParam<const char*> {};

TEST_P(FailingMeeting, IsToldAndMayBeRepeated) {
  const std::string call = GetParam();
  Scene scene({{"fail", call}}), other({}, "b");
  scene.registerBoth();
  other.registerBoth();
  const std::string metadata = other.agent.metadata();
  const std::vector<MemDescriptor> here = {{scene.from.data(), kSize}},
                                   there = {{other.to.data(), kSize}};
  const auto meet = [&] {
    scene.agent.loadMetadata(metadata);
    return scene.agent.prepareTransfer(OpType::WRITE, here, there, "b", "HOSTILE");
  };
  if (call == "connect") {
    EXPECT_EQ(failureOf([&] { meet(); }).code, Errc::BACKEND);
  }
  EXPECT_EQ(scene.run(meet()), XferState::DONE);
  EXPECT_EQ(other.to, scene.from);
}

INSTANTIATE_TEST_SUITE_P(Calls, FailingMeeting, testing::Values("connect", "load"));

TEST(Hostile, ShutDownFails) {
  Scene scene({{"fail", "shutdown,deregister,quiesce"}});
  scene.registerBoth();
  EXPECT_EQ(scene.run(scene.prepare()), XferState::DONE);
}

TEST(Hostile, ProgressAndArmFail) {
  Scene scene({{"fail", "progress,arm"}, {"delay_us", "10000"}});
  scene.registerBoth();
  EXPECT_EQ(scene.run(scene.prepare()), XferState::DONE);
}

// ---- what it says when it fails -------------------------------------------------------------

TEST(Hostile, GarbledWordsAreMadeReadable) {
  Scene scene({{"fail", "register_memory,post"}, {"mode", "garbled"}});
  const Failure failure = failureOf([&] { scene.registerBoth(); });
  EXPECT_EQ(failure.code, Errc::BACKEND);
  EXPECT_TRUE(readable(failure.text));
  scene.registerBoth();
  const Transfer transfer = scene.prepare();
  EXPECT_EQ(scene.run(transfer), XferState::FAILED);
  EXPECT_EQ(scene.agent.transferError(transfer), Errc::BACKEND);
  EXPECT_TRUE(readable(errorOf(scene.agent, transfer)));
}

TEST(Hostile, GarbledReportsAreMadeReadable) {
  Scene scene({{"mode", "fails_garbled"}});
  scene.registerBoth();
  const Transfer transfer = scene.prepare();
  EXPECT_EQ(scene.run(transfer), XferState::FAILED);
  EXPECT_EQ(scene.agent.transferError(transfer), Errc::BACKEND);
  EXPECT_TRUE(readable(errorOf(scene.agent, transfer)));  // unprinted: reports are XML
  for (const Event& event : scene.agent.events()) EXPECT_TRUE(readable(event.text));
}

TEST(Hostile, ACodeThatMeansNothingIsAFailure) {
  Scene scene({{"mode", "positive_status"}});
  scene.registerBoth();
  EXPECT_EQ(scene.run(scene.prepare()), XferState::FAILED);
}

// ---- what it throws -------------------------------------------------------------------------

class Throwing : public testing::TestWithParam<const char*> {};

TEST_P(Throwing, IsContained) {
  // Whatever it does, the program goes on: calls fail or work, transfers end, the agent dies.
  failureOf([] {
    Scene scene({{"throw", GetParam()}}), other({}, "b");
    failureOf([&] { scene.registerBoth(); });
    other.registerBoth();
    failureOf([&] {
      const Transfer transfer = scene.prepare(500ms);
      EXPECT_NE(scene.run(transfer), XferState::POSTED);
    });
    failureOf([&] {
      const Transfer transfer = scene.prepare(500ms);
      scene.agent.postTransfer(transfer);
      scene.agent.cancelTransfer(transfer);
      EXPECT_NE(scene.agent.waitTransfer(transfer, kPatience), XferState::POSTED);
      scene.agent.releaseTransfer(transfer);
    });
    failureOf([&] { scene.agent.sendNotification("a", "hello"); });
    failureOf([&] { scene.agent.loadMetadata(other.agent.metadata()); });
    failureOf([&] { scene.agent.invalidatePeer("b"); });
    failureOf([&] { scene.agent.deregisterMemory({{scene.from.data(), kSize}}); });
  });
}

INSTANTIATE_TEST_SUITE_P(Calls, Throwing,
                         testing::Values("create", "local_info", "connect", "register_memory",
                                         "public_key", "deregister", "load", "prepare", "post",
                                         "cancel", "quiesce", "notify", "progress", "arm",
                                         "release", "disconnect", "shutdown"),
                         [](const auto& info) { return std::string(info.param); });

// ---- what it never does ---------------------------------------------------------------------

TEST(Hostile, WhatIsNeverReportedTimesOut) {
  Scene scene({{"mode", "never"}});
  scene.registerBoth();
  const Transfer transfer = scene.prepare(200ms);
  EXPECT_EQ(scene.run(transfer), XferState::FAILED);
  EXPECT_EQ(scene.agent.transferError(transfer), Errc::TIMEOUT);
  // Nobody can promise that nothing lands any more.
  EXPECT_EQ(failureOf([&] { scene.agent.postTransfer(transfer); }).code, Errc::REPOST_ACTIVE);
  EXPECT_EQ(failureOf([&] { scene.agent.quiesceTransfer(transfer, 50ms); }).code,
            Errc::NOT_QUIESCED);
  EXPECT_EQ(failureOf([&] { scene.agent.deregisterMemory({{scene.from.data(), kSize}}); }).code,
            Errc::NOT_QUIESCED);
}

TEST(Hostile, WhatIsNeverReportedStalls) {
  ::setenv("NIXL_STALL_MS", "200", 1);
  Scene scene({{"mode", "never"}});
  ::unsetenv("NIXL_STALL_MS");
  scene.registerBoth();
  const Transfer transfer = scene.prepare();
  EXPECT_EQ(scene.run(transfer), XferState::FAILED);
  EXPECT_EQ(scene.agent.transferError(transfer), Errc::STALLED);
}

TEST(Hostile, AgentsEndThoughNothingIsEverReported) {
  const auto begin = Clock::now();
  {
    Scene scene({{"mode", "never"}});
    scene.registerBoth();
    for (int i = 0; i < 10; ++i) scene.agent.postTransfer(scene.prepare());
  }
  EXPECT_LT(Clock::now() - begin, kPatience);
}

// ---- what it says too much of ---------------------------------------------------------------

class Chatty : public testing::TestWithParam<const char*> {};

TEST_P(Chatty, IsBelievedOnce) {
  Scene scene({{"mode", GetParam()}});
  scene.registerBoth();
  const Transfer transfer = scene.prepare();
  for (int round = 0; round < 20; ++round) {
    std::ranges::fill(scene.to, '-');
    ASSERT_EQ(scene.run(transfer), XferState::DONE) << errorOf(scene.agent, transfer);
    const PieceStatus pieces = scene.agent.pieceStatus(transfer);
    EXPECT_EQ(pieces.pieces, 10u);
    EXPECT_EQ(pieces.done, 10u);
    EXPECT_EQ(pieces.failed, 0u);
    EXPECT_EQ(pieces.bytes_done, 9'000u);
    EXPECT_TRUE(std::ranges::all_of(pieces.status, [](int32_t status) { return status == 0; }));
    for (size_t i = 0; i < 10; ++i)
      ASSERT_EQ(std::memcmp(&scene.to[i * 1000], &scene.from[i * 1000], 900), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, Chatty,
                         testing::Values("reversed", "partial", "reversed,partial", "twice",
                                         "wrong_attempt", "wrong_request", "out_of_bounds",
                                         "bytes_too_many", "inline_twice", "garbage_peers"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::ranges::replace(name, ',', '_');
                           return name;
                         });

TEST(Hostile, ACancelThatIsIgnoredEndsWhenItEnds) {
  Scene scene({{"mode", "late_after_cancel"}, {"delay_us", "100000"}});
  cancelInFlight(scene);  // only now is the target the program's own again
  std::ranges::fill(scene.to, '#');
  std::this_thread::sleep_for(150ms);
  EXPECT_TRUE(std::ranges::all_of(scene.to, [](char c) { return c == '#'; }));
}

TEST(Hostile, GarbageIsNoNotification) {
  Scene scene({{"mode", "garbage_notifications"}});
  for (int i = 0; i < 50; ++i) scene.agent.sendNotification("a", std::to_string(i));
  const auto came = scene.agent.takeNotifications();
  ASSERT_EQ(came.size(), 50u);
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(came[static_cast<size_t>(i)].message, std::to_string(i));
    EXPECT_EQ(came[static_cast<size_t>(i)].agent, "a");
  }
}

TEST(Hostile, ARepeatedNotificationComesOnce) {
  Scene scene({{"mode", "repeats_notifications"}});
  for (int i = 0; i < 50; ++i) scene.agent.sendNotification("a", std::to_string(i));
  EXPECT_EQ(scene.agent.takeNotifications().size(), 50u);
}

TEST(Hostile, ASlowConnectionDelaysWhatUsesIt) {
  Scene scene({{"connect_us", "200000"}}), other({}, "b");
  scene.registerBoth();
  other.registerBoth();
  const auto begin = Clock::now();
  scene.agent.loadMetadata(other.agent.metadata());
  const std::vector<MemDescriptor> here = {{scene.from.data(), kSize}},
                                   there = {{other.to.data(), kSize}};
  const Transfer transfer = scene.agent.prepareTransfer(OpType::WRITE, here, there, "b", "HOSTILE");
  EXPECT_EQ(scene.agent.postTransfer(transfer), XferState::POSTED);
  EXPECT_EQ(scene.agent.waitTransfer(transfer, kPatience), XferState::DONE);
  EXPECT_GE(Clock::now() - begin, 200ms);
  const auto events = scene.agent.events();
  EXPECT_TRUE(std::ranges::any_of(events, [](const Event& event) {
    return event.kind == Event::Kind::PEER_UP && event.peer == "b";
  }));
}

}  // namespace
}  // namespace nixl
