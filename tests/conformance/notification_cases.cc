// Messages: after their data, in order, once, whole.

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>

#include "cases.h"

namespace nixl::conformance {

namespace {

constexpr uint64_t kSize = 256 * 1024;

std::vector<std::string> messages(const std::vector<Notification>& list) {
  std::vector<std::string> texts;
  for (const Notification& one : list) texts.push_back(one.message);
  return texts;
}

void comeAfterTheirData(const Given& given) {
  Ends ends(given, kSize, kSize);
  const Transfer transfer = ends.prepare(OpType::WRITE, kSize, ends.options());
  for (uint64_t round = 0; round < 30; ++round) {
    const Bytes sent = pattern(round, kSize);
    ends.area->write(0, sent);
    const std::string message = "round " + std::to_string(round);
    auto seen = ends.target->expect(message, 0, sent);
    ends.agent->postTransfer(transfer, message);
    ASSERT_EQ(ends.wait(transfer), XferState::DONE) << ends.errorOf(transfer);
    ASSERT_EQ(seen.get(), "");
  }
}

void comeAfterManyPieces(const Given& given) {
  constexpr uint64_t kPieces = 2000, kLength = 100;
  Ends ends(given, kPieces * 128, kPieces * kLength);
  std::vector<MemDescriptor> local, remote;
  for (uint64_t i = 0; i < kPieces; ++i) {
    local.push_back(ends.area->part(i * 128, kLength));
    remote.push_back(ends.target->part(i * kLength, kLength));
  }
  const Transfer transfer = ends.agent->prepareTransfer(OpType::WRITE, local, remote,
                                                        ends.target->name(), ends.options());
  for (uint64_t round = 0; round < 5; ++round) {
    const Bytes source = pattern(round, kPieces * 128);
    ends.area->write(0, source);
    Bytes wanted;
    for (uint64_t i = 0; i < kPieces; ++i)
      wanted.insert(wanted.end(), source.begin() + static_cast<ptrdiff_t>(i * 128),
                    source.begin() + static_cast<ptrdiff_t>(i * 128 + kLength));
    auto seen = ends.target->expect("all of it", 0, wanted);
    ends.agent->postTransfer(transfer, "all of it");
    ASSERT_EQ(ends.wait(transfer), XferState::DONE) << ends.errorOf(transfer);
    ASSERT_EQ(seen.get(), "");
  }
}

void comeInTheirOrder(const Given& given) {
  Ends ends(given, kSize, kSize);
  std::vector<std::string> sent;
  for (int i = 0; i < 1000; ++i) {
    sent.push_back("message " + std::to_string(i));
    ends.agent->sendNotification(ends.target->name(), sent.back(), given.backend.name);
  }
  const auto came = ends.target->notifications(sent.size());
  EXPECT_EQ(messages(came), sent);
  EXPECT_TRUE(std::ranges::all_of(
      came, [&](const Notification& one) { return one.agent == ends.agent->name(); }));
}

void keepTheirOrderAmongTransfers(const Given& given) {
  Ends ends(given, kSize, kSize);
  const Transfer transfer = ends.prepare(OpType::WRITE, kSize, ends.options());
  std::vector<std::string> sent;
  for (int i = 0; i < 40; ++i) {
    sent.push_back("transfer " + std::to_string(i));
    ends.agent->postTransfer(transfer, sent.back());
    ASSERT_EQ(ends.wait(transfer), XferState::DONE) << ends.errorOf(transfer);
    sent.push_back("alone " + std::to_string(i));
    ends.agent->sendNotification(ends.target->name(), sent.back());
  }
  EXPECT_EQ(messages(ends.target->notifications(sent.size())), sent);
}

void mayHoldAnyBytes(const Given& given) {
  Ends ends(given, kSize, kSize);
  std::string every;
  for (int i = 0; i < 256; ++i) every += static_cast<char>(i);
  const std::vector<std::string> sent = {"", every, std::string("\0", 1), "\xFF\xFE"};
  for (const std::string& message : sent)
    ends.agent->sendNotification(ends.target->name(), message);
  EXPECT_EQ(messages(ends.target->notifications(sent.size())), sent);
}

void mayBeLarge(const Given& given) {
  Ends ends(given, kSize, kSize);
  std::vector<std::string> sent;
  for (const size_t size : {size_t{1} << 10, size_t{64} << 10, (size_t{1} << 20) + 1}) {
    const Bytes bytes = pattern(size, size);
    sent.emplace_back(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    ends.agent->sendNotification(ends.target->name(), sent.back());
  }
  EXPECT_TRUE(messages(ends.target->notifications(sent.size())) == sent);  // too large to print
}

void comeOnlyWhenThereIsOne(const Given& given) {
  Ends ends(given, kSize, kSize);
  const Transfer plain = ends.prepare(OpType::WRITE, 100, ends.options());
  TransferOptions empty = ends.options();
  empty.notification = "";
  const Transfer emptied = ends.prepare(OpType::WRITE, 100, empty);
  for (const Transfer transfer : {plain, emptied})
    ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
  ends.agent->sendNotification(ends.target->name(), "the end");
  EXPECT_EQ(messages(ends.target->notifications(1)), (std::vector<std::string>{"the end"}));
}

void comeAgainWithEachPost(const Given& given) {
  Ends ends(given, kSize, kSize);
  TransferOptions options = ends.options();
  options.notification = "first";
  const Transfer transfer = ends.prepare(OpType::WRITE, 100, options);
  ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
  ends.agent->postTransfer(transfer, "second");  // and from now on
  ASSERT_EQ(ends.wait(transfer), XferState::DONE);
  ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE);
  ends.agent->postTransfer(transfer, "");  // none any more
  ASSERT_EQ(ends.wait(transfer), XferState::DONE);
  ends.agent->sendNotification(ends.target->name(), "the end");
  EXPECT_EQ(messages(ends.target->notifications(4)),
            (std::vector<std::string>{"first", "second", "second", "the end"}));
}

void comeWithReadsToo(const Given& given) {
  Ends ends(given, kSize, kSize);
  const Bytes sent = pattern(5, kSize);
  ends.target->write(0, sent);
  const Transfer transfer = ends.prepare(OpType::READ, kSize, ends.options());
  ends.agent->postTransfer(transfer, "you may reuse it");
  ASSERT_EQ(ends.wait(transfer), XferState::DONE) << ends.errorOf(transfer);
  EXPECT_EQ(messages(ends.target->notifications(1)),
            (std::vector<std::string>{"you may reuse it"}));
  EXPECT_EQ(difference(sent, ends.area->read(0, kSize)), "");
}

void areNotLostBetweenThreads(const Given& given) {
  constexpr int kThreads = 4, kEach = 3000;
  Ends ends(given, kSize, kSize);
  std::vector<std::thread> threads;
  std::array<Errc, kThreads> codes{};
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      codes[static_cast<size_t>(t)] = codeOf([&] {
        for (int i = 0; i < kEach; ++i)
          ends.agent->sendNotification(ends.target->name(),
                                       std::to_string(t) + " " + std::to_string(10'000 + i));
      });
    });
  for (auto& thread : threads) thread.join();
  for (const Errc code : codes) EXPECT_EQ(code, Errc::OK);
  auto came = messages(ends.target->notifications(kThreads * kEach));
  EXPECT_EQ(came.size(), size_t{kThreads * kEach});
  // Each thread's own are in order.
  std::ranges::stable_sort(came, {}, [](const std::string& text) { return text[0]; });
  EXPECT_TRUE(std::ranges::is_sorted(came));
  EXPECT_EQ(std::ranges::adjacent_find(came), came.end()) << "one came twice";
}

void goBothWays(const Given& given) {
  Ends ends(given, kSize, kSize);
  for (int i = 0; i < 20; ++i) {
    ends.agent->sendNotification(ends.target->name(), "ping");
    ASSERT_EQ(messages(ends.target->notifications(1)), (std::vector<std::string>{"ping"}));
    ASSERT_EQ(ends.target->notify(ends.agent->name(), "pong"), Errc::OK);
    std::vector<Notification> came;
    const auto deadline = std::chrono::steady_clock::now() + given.backend.patience;
    while (came.empty() && std::chrono::steady_clock::now() < deadline)
      came = ends.agent->takeNotifications();
    ASSERT_EQ(messages(came), (std::vector<std::string>{"pong"}));
    ASSERT_EQ(came[0].agent, ends.target->name());
  }
}

void areRefusedForStrangers(const Given& given) {
  Ends ends(given, kSize, kSize);
  EXPECT_EQ(codeOf([&] { ends.agent->sendNotification("nobody", "hello"); }), Errc::NOT_FOUND);
}

void areRefusedByWhoHasNone(const Given& given) {
  Ends ends(given, kSize, kSize);
  EXPECT_EQ(codeOf([&] { ends.agent->sendNotification(ends.target->name(), "hello"); }),
            Errc::BACKEND);
}

}  // namespace

std::vector<Case> notificationCases() {
  return {
      {"NotificationsComeAfterTheirData", kNotifications, comeAfterTheirData},
      {"NotificationsComeAfterManyPieces", kNotifications, comeAfterManyPieces},
      {"NotificationsComeInTheirOrder", kNotifications, comeInTheirOrder},
      {"NotificationsKeepTheirOrderAmongTransfers", kNotifications, keepTheirOrderAmongTransfers},
      {"NotificationsMayHoldAnyBytes", kNotifications, mayHoldAnyBytes},
      {"NotificationsMayBeLarge", kNotifications, mayBeLarge},
      {"NotificationsComeOnlyWhenThereIsOne", kNotifications, comeOnlyWhenThereIsOne},
      {"NotificationsComeAgainWithEachPost", kNotifications, comeAgainWithEachPost},
      {"NotificationsComeWithReadsToo", kNotifications, comeWithReadsToo},
      {"NotificationsAreNotLostBetweenThreads", kNotifications, areNotLostBetweenThreads},
      {"NotificationsGoBothWays", kNotifications | kPeer, goBothWays},
      {"NotificationsAreRefusedForStrangers", kNotifications, areRefusedForStrangers},
      {"NotificationsAreRefusedByWhoHasNone", kSilent, areRefusedByWhoHasNone},
  };
}

}  // namespace nixl::conformance
