// The agent over the engine that is linked in, whose delay makes transfers stay in flight.
#include "nixl/agent.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>

#include "base/clock.h"

namespace nixl {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class OneAgent : public testing::TestWithParam<bool> {
 protected:
  void start(const std::string& delay_us = "0") {
    AgentConfig config;
    config.backends = {"LOOPBACK"};
    config.backend_params["LOOPBACK"] = {{"delay_us", delay_us}};
    config.progress_thread = GetParam();
    config.capture_telemetry = true;
    agent_ = std::make_unique<Agent>("me", config);
    source_.assign(64 * 1024, 'x');
    target_.assign(64 * 1024, 'o');
    source_memory_ = agent_->registerMemory({{source_.data(), source_.size()}});
    target_memory_ = agent_->registerMemory({{target_.data(), target_.size()}});
  }
  Transfer transfer(uint64_t length = 4096, TransferOptions options = {}) {
    return agent_->prepareTransfer(OpType::WRITE, {{source_.data(), length}},
                                   {{target_.data(), length}}, "me", options);
  }
  // Ends within a generous time, whoever has to drive.
  bool eventually(const std::function<bool()>& done) {
    const auto deadline = base::Deadline::after(seconds(10));
    while (!done()) {
      if (deadline.expired()) return false;
      agent_->progress();
      std::this_thread::sleep_for(milliseconds(1));
    }
    return true;
  }

  std::vector<char> source_, target_;
  Memory source_memory_, target_memory_;
  std::unique_ptr<Agent> agent_;
};

INSTANTIATE_TEST_SUITE_P(ProgressThread, OneAgent, testing::Bool(),
                         [](const auto& info) { return info.param ? "On" : "Off"; });

Errc codeOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_GT(std::strlen(error.what()), 20u) << "a sentence, please: " << error.what();
    return error.code();
  }
  return Errc::OK;
}

TEST_P(OneAgent, MovesAndMovesAgain) {
  start();
  auto t = transfer();
  EXPECT_EQ(agent_->checkTransfer(t), XferState::PREPARED);
  for (int i = 0; i < 3; ++i) {
    source_.assign(source_.size(), static_cast<char>('a' + i));
    agent_->postTransfer(t);
    ASSERT_EQ(agent_->waitTransfer(t, seconds(10)), XferState::DONE);
    EXPECT_EQ(std::memcmp(source_.data(), target_.data(), 4096), 0);
    EXPECT_EQ(target_[4096], 'o') << "and not a byte more";
  }
  const TransferTelemetry telemetry = agent_->transferTelemetry(t);
  EXPECT_EQ(telemetry.bytes, 4096u);
  EXPECT_EQ(telemetry.descriptors, 1u);
  agent_->releaseTransfer(t);
  EXPECT_EQ(codeOf([&] { agent_->checkTransfer(t); }), Errc::INVALID_PARAM);
  EXPECT_EQ(codeOf([&] { agent_->releaseTransfer(t); }), Errc::INVALID_PARAM);
}

TEST_P(OneAgent, RefusesToPostWhatIsInFlight) {
  start("200000");
  auto t = transfer();
  EXPECT_EQ(agent_->postTransfer(t), XferState::POSTED);
  EXPECT_EQ(codeOf([&] { agent_->postTransfer(t); }), Errc::REPOST_ACTIVE);
  EXPECT_EQ(agent_->waitTransfer(t, seconds(10)), XferState::DONE) << "and the first is unharmed";
}

TEST_P(OneAgent, WaitsForAnyAndForAll) {
  start("20000");
  std::vector<Transfer> all = {transfer(64), transfer(128), transfer(256)};
  EXPECT_EQ(agent_->waitTransfers({}, Wait::ALL, seconds(1)), 0u);
  for (auto t : all) agent_->postTransfer(t);
  EXPECT_EQ(agent_->waitTransfers(all, Wait::ALL, milliseconds(0)), 0u);
  EXPECT_GE(agent_->waitTransfers(all, Wait::ANY, seconds(10)), 1u);
  EXPECT_EQ(agent_->waitTransfers(all, Wait::ALL, seconds(10)), 3u);
}

TEST_P(OneAgent, CancelledIsQuietAndMayBePostedAgain) {
  start("60000000");
  auto t = transfer();
  agent_->postTransfer(t);
  agent_->quiesceTransfer(t, seconds(10));
  EXPECT_EQ(agent_->checkTransfer(t), XferState::CANCELED);
  EXPECT_EQ(agent_->transferError(t), Errc::CANCELED);
  EXPECT_EQ(target_[0], 'o') << "nothing landed";
  EXPECT_EQ(agent_->pieceStatus(t).done, 0u);
  EXPECT_EQ(agent_->postTransfer(t), XferState::POSTED);
}

TEST_P(OneAgent, ADeadlineFailsTheTransfer) {
  start("60000000");
  TransferOptions options;
  options.timeout = milliseconds(30);
  auto t = transfer(64, options);
  agent_->postTransfer(t);
  EXPECT_EQ(agent_->waitTransfer(t, seconds(10)), XferState::FAILED);
  std::string text;
  EXPECT_EQ(agent_->transferError(t, &text), Errc::TIMEOUT);
  EXPECT_NE(text.find("30 ms"), std::string::npos) << text;
  const auto events = agent_->events();
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events[0].kind, Event::Kind::TRANSFER_FAILED);
  EXPECT_EQ(events[0].transfer, t.id);
}

TEST_P(OneAgent, NotificationsComeAfterTheDataInOrder) {
  start();
  TransferOptions options;
  options.notification = "first";
  auto t = transfer(64, options);
  agent_->postTransfer(t);
  agent_->waitTransfer(t, seconds(10));
  agent_->postTransfer(t, "second");
  agent_->waitTransfer(t, seconds(10));
  agent_->postTransfer(t);
  agent_->waitTransfer(t, seconds(10));
  agent_->sendNotification("me", std::string("with\0nul", 8));
  std::vector<Notification> got;
  ASSERT_TRUE(eventually([&] {
    for (auto& message : agent_->takeNotifications()) got.push_back(message);
    return got.size() >= 4;
  }));
  EXPECT_EQ(got[0].message, "first");
  EXPECT_EQ(got[1].message, "second") << "replaces the stored one";
  EXPECT_EQ(got[2].message, "second") << "also for later posts";
  EXPECT_EQ(got[3].message, std::string("with\0nul", 8));
  EXPECT_EQ(got[3].agent, "me");
}

TEST_P(OneAgent, AReleasedTransferInFlightSendsNothing) {
  start("50000");
  TransferOptions options;
  options.notification = "never";
  auto t = transfer(64, options);
  agent_->postTransfer(t);
  agent_->releaseTransfer(t);
  EXPECT_EQ(codeOf([&] { agent_->checkTransfer(t); }), Errc::INVALID_PARAM);
  agent_->sendNotification("me", "after");
  std::vector<Notification> got;
  ASSERT_TRUE(eventually([&] {
    for (auto& message : agent_->takeNotifications()) got.push_back(message);
    return !got.empty();
  }));
  EXPECT_EQ(got[0].message, "after");
}

TEST_P(OneAgent, DeregisteringEndsWhatIsInFlightThere) {
  start("60000000");
  auto t = transfer();
  agent_->postTransfer(t);
  agent_->deregisterMemory(target_memory_);
  EXPECT_NE(agent_->checkTransfer(t), XferState::POSTED);
  EXPECT_EQ(target_[0], 'o');
  EXPECT_EQ(codeOf([&] { agent_->postTransfer(t); }), Errc::NOT_FOUND);
  EXPECT_EQ(codeOf([&] { transfer(); }), Errc::NOT_FOUND);
  EXPECT_EQ(codeOf([&] { agent_->deregisterMemory(target_memory_); }), Errc::INVALID_PARAM);
}

TEST_P(OneAgent, EndsWithTransfersInFlight) {
  start("60000000");
  for (int i = 0; i < 10; ++i) agent_->postTransfer(transfer());
  agent_.reset();  // within its second; the test's own time limit is the check
}

TEST_P(OneAgent, TheCompletionDescriptorBecomesReadable) {
  start("20000");
  const int fd = agent_->completionFd();
  pollfd wait{fd, POLLIN, 0};
  EXPECT_EQ(poll(&wait, 1, 0), 0);
  auto t = transfer();
  agent_->postTransfer(t);
  if (GetParam()) {
    EXPECT_EQ(poll(&wait, 1, 10'000), 1) << "without anybody polling the agent";
  } else {
    ASSERT_TRUE(eventually([&] { return agent_->checkTransfer(t) == XferState::DONE; }));
    EXPECT_EQ(poll(&wait, 1, 10'000), 1);
  }
}

TEST_P(OneAgent, ADuplicateOfTheDescriptorTellsOfTheEnd) {
  start();
  const int fd = dup(agent_->completionFd());
  pollfd wait{fd, POLLIN, 0};
  EXPECT_EQ(poll(&wait, 1, 0), 0);
  agent_.reset();
  EXPECT_EQ(poll(&wait, 1, 10'000), 1);
  close(fd);
}

TEST_P(OneAgent, WhoSleepsOnTheDescriptorHandsOverFirst) {
  start("20000");
  const int fd = agent_->completionFd();
  auto t = transfer();
  agent_->postTransfer(t);
  for (int i = 0; i < 100; ++i) agent_->checkTransfer(t);  // the progress thread stands back
  agent_->handOver();
  pollfd wait{fd, POLLIN, 0};
  if (GetParam()) {
    EXPECT_EQ(poll(&wait, 1, 10'000), 1);
  }
  EXPECT_TRUE(eventually([&] { return agent_->peekTransfer(t) == XferState::DONE; }));
}

TEST_P(OneAgent, PeekingDrivesNothing) {
  start("5000");
  TransferOptions options;
  options.notification = "note";
  auto t = transfer(4096, options);
  EXPECT_EQ(agent_->peekTransfer(t), XferState::PREPARED);
  agent_->postTransfer(t);
  EXPECT_FALSE(agent_->hasNotifications());
  if (!GetParam()) {
    std::this_thread::sleep_for(milliseconds(20));
    EXPECT_EQ(agent_->peekTransfer(t), XferState::POSTED) << "nobody has driven";
  }
  ASSERT_TRUE(eventually([&] { return agent_->peekTransfer(t) == XferState::DONE; }));
  ASSERT_TRUE(eventually([&] { return agent_->hasNotifications(); }));
  EXPECT_EQ(agent_->takeNotifications().size(), 1u);
  EXPECT_FALSE(agent_->hasNotifications());
  agent_->releaseTransfer(t);
  EXPECT_EQ(agent_->peekTransfer(t), std::nullopt);
}

TEST_P(OneAgent, APostMayHaveADeadlineOfItsOwn) {
  start("60000000");
  TransferOptions options;
  options.timeout = milliseconds(10);
  auto t = transfer(4096, options);
  auto ended = [&] { return agent_->checkTransfer(t) == XferState::FAILED; };
  agent_->postTransfer(t, {}, seconds(0));  // none, whatever it was made with
  EXPECT_EQ(agent_->waitTransfer(t, milliseconds(50)), XferState::POSTED);
  agent_->quiesceTransfer(t, seconds(10));
  std::string text;
  for (const auto& [limit, words] :
       {std::pair{milliseconds(20), "deadline of 20 ms"}, {milliseconds(0), "deadline of 10 ms"}}) {
    if (limit.count() != 0) {
      agent_->postTransfer(t, {}, limit);
    } else {
      agent_->postTransfer(t);  // what it was made with, again
    }
    ASSERT_TRUE(eventually(ended));
    EXPECT_EQ(agent_->transferError(t, &text), Errc::TIMEOUT);
    EXPECT_NE(text.find(words), std::string::npos) << text;
    agent_->quiesceTransfer(t, seconds(10));
  }
}

TEST_P(OneAgent, AChildProcessIsToldAndTouchesNothing) {
  start("60000000");
  agent_->postTransfer(transfer());
  const pid_t child = fork();
  if (child == 0) {
    const bool refused = codeOf([&] { agent_->progress(); }) == Errc::FORKED &&
                         codeOf([&] { agent_->metadata(); }) == Errc::FORKED;
    agent_.reset();
    _exit(refused ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST_P(OneAgent, BadInputIsSaidAndLosesNothing) {
  start();
  char outside[16];
  const uint64_t base = reinterpret_cast<uint64_t>(source_.data());
  auto list = [&](std::vector<MemDescriptor> local, std::vector<MemDescriptor> remote,
                  const char* peer) {
    return codeOf([&] { agent_->prepareTransfer(OpType::READ, local, remote, peer); });
  };
  EXPECT_EQ(list({{base, 8}}, {{base, 8}}, "nobody"), Errc::NOT_FOUND);
  EXPECT_EQ(list({{base, 8}}, {{base, 9}}, "me"), Errc::INVALID_PARAM);
  EXPECT_EQ(list({{base, 8}, {base, 8}}, {{base, 8}}, "me"), Errc::INVALID_PARAM);
  EXPECT_EQ(list({{outside, 8}}, {{base, 8}}, "me"), Errc::NOT_FOUND);
  EXPECT_EQ(list({}, {}, "me"), Errc::NOT_FOUND);
  EXPECT_EQ(list({{UINT64_MAX - 2, 8}}, {{base, 8}}, "me"), Errc::INVALID_PARAM);
  EXPECT_EQ(codeOf([&] { agent_->createBackend("LOOPBACK"); }), Errc::INVALID_PARAM);
  EXPECT_EQ(codeOf([&] { agent_->createBackend("NONESUCH"); }), Errc::NOT_FOUND);
  EXPECT_EQ(codeOf([&] { agent_->registerMemory({}); }), Errc::BACKEND);
  EXPECT_EQ(codeOf([&] { agent_->registerMemory({{base, 8, 0, MemType::VRAM}}); }),
            Errc::NOT_FOUND);
  EXPECT_EQ(codeOf([&] { agent_->loadMetadata("garbage"); }), Errc::MISMATCH);
  EXPECT_EQ(codeOf([&] { agent_->metadata(); }), Errc::INVALID_PARAM);
  EXPECT_EQ(codeOf([&] { agent_->sendNotification("nobody", "x"); }), Errc::NOT_FOUND);
  EXPECT_EQ(codeOf([&] { agent_->postTransfer({}); }), Errc::INVALID_PARAM);
  EXPECT_EQ(codeOf([&] { Agent("", {}); }), Errc::INVALID_PARAM);
  auto t = transfer();
  agent_->postTransfer(t);
  EXPECT_EQ(agent_->waitTransfer(t, seconds(10)), XferState::DONE);
}

TEST_P(OneAgent, NamesWithAnyBytesStayReadableInErrors) {
  start();
  try {
    agent_->sendNotification(std::string("b\0\n", 3), "x");
    FAIL() << "nobody has that name";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("\"b\\x00\\x0a\""), std::string::npos) << error.what();
  }
}

TEST_P(OneAgent, ManyThreadsAtOnce) {
  start();
  std::vector<std::thread> threads;
  std::atomic<int> done{0};
  for (uint64_t thread = 0; thread < 4; ++thread)
    threads.emplace_back([&, thread] {
      for (int i = 0; i < 200; ++i) {
        TransferOptions options;
        options.notification = "n";
        auto t = agent_->prepareTransfer(OpType::WRITE, {{source_.data() + thread * 1024, 1024}},
                                         {{target_.data() + thread * 1024, 1024}}, "me", options);
        agent_->postTransfer(t);
        if (agent_->waitTransfer(t, seconds(10)) == XferState::DONE) ++done;
        agent_->releaseTransfer(t);
      }
    });
  size_t messages = 0;
  EXPECT_TRUE(eventually([&] {
    messages += agent_->takeNotifications().size();
    return messages == 800;
  }));
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(done, 800);
}

}  // namespace
}  // namespace nixl
