// Transfers, memory and agents that end before somebody expects it, or are used by several threads.

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <thread>

#include "cases.h"

namespace nixl::conformance {

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr uint64_t kSize = 64 * 1024;

bool ended(XferState state) { return state != XferState::POSTED && state != XferState::PREPARED; }

// Memory that was given back and holds something new: does a late byte land in it? Looks until a
// slow transfer would have moved.
std::string changesLater(const Given& given, const Bytes& wanted,
                         const std::function<Bytes()>& read) {
  const auto until = Clock::now() + 2 * given.backend.slow_for + 100ms;
  while (Clock::now() < until) {
    const std::string wrong = difference(wanted, read());
    if (!wrong.empty()) return wrong;
    std::this_thread::sleep_for(10ms);
  }
  return "";
}

// ---- cancelling -----------------------------------------------------------------------------

// Whatever the moment: afterwards it has ended, and once it has, nothing lands.
void endsWhatIsCancelled(const Given& given, OpType op) {
  const uint64_t size = given.backend.largest;
  Ends ends(given, size, size);
  const Transfer transfer = ends.prepare(op, size, ends.options());
  for (const auto pause : {0us, 100us, 2000us}) {
    ends.agent->postTransfer(transfer);
    std::this_thread::sleep_for(pause);
    ends.agent->cancelTransfer(transfer);
    const XferState state = ends.wait(transfer);
    ASSERT_TRUE(state == XferState::CANCELED || state == XferState::DONE)
        << xferStateName(state) << " " << ends.errorOf(transfer);
    const Bytes fresh = pattern(7, size);
    const auto read = [&] {
      return op == OpType::WRITE ? ends.target->read(0, size) : ends.area->read(0, size);
    };
    if (op == OpType::WRITE)
      ends.target->write(0, fresh);
    else
      ends.area->write(0, fresh);
    ASSERT_EQ(difference(fresh, read()), "");
    std::this_thread::sleep_for(50ms);
    ASSERT_EQ(difference(fresh, read()), "") << "after the transfer had ended";
  }
  // It is as good as new.
  const std::vector<Piece> whole = {{0, 0, size}};
  checkMove(ends, op, whole, [&] {
    ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
  });
}

void movesNothingOnceCancelled(const Given& given) {
  Ends ends(given, kSize, kSize, slowConfig(given.backend));
  const Bytes before = pattern(2, kSize);
  ends.target->write(0, before);
  TransferOptions options = ends.options();
  if (given.backend.notifications) options.notification = "it is there";
  const Transfer transfer = ends.prepare(OpType::WRITE, kSize, options);
  ASSERT_EQ(ends.agent->postTransfer(transfer), XferState::POSTED);
  ends.agent->cancelTransfer(transfer);
  ASSERT_EQ(ends.wait(transfer), XferState::CANCELED) << ends.errorOf(transfer);
  EXPECT_EQ(ends.agent->transferError(transfer), Errc::CANCELED);
  EXPECT_EQ(changesLater(given, before, [&] { return ends.target->read(0, kSize); }), "");
  if (given.backend.notifications) {
    // The cancelled one's message never comes, not even before a later one.
    ends.agent->sendNotification(ends.target->name(), "later");
    const auto came = ends.target->notifications(1);
    ASSERT_EQ(came.size(), 1u);
    EXPECT_EQ(came[0].message, "later");
  }
}

void quiescesATransfer(const Given& given) {
  Ends ends(given, kSize, kSize, slowConfig(given.backend));
  const Transfer transfer = ends.prepare(OpType::WRITE, kSize, ends.options());
  ends.agent->postTransfer(transfer);
  ends.agent->quiesceTransfer(transfer, given.backend.patience);
  EXPECT_TRUE(ended(ends.agent->checkTransfer(transfer)));
  const Bytes after = pattern(3, kSize);
  ends.target->write(0, after);
  EXPECT_EQ(changesLater(given, after, [&] { return ends.target->read(0, kSize); }), "");
}

void cancelsOnlyWhatIsInFlight(const Given& given) {
  Ends ends(given, kSize, kSize);
  const Transfer transfer = ends.prepare(OpType::WRITE, kSize, ends.options());
  ends.agent->cancelTransfer(transfer);
  EXPECT_EQ(ends.agent->checkTransfer(transfer), XferState::PREPARED);
  ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE);
  ends.agent->cancelTransfer(transfer);
  EXPECT_EQ(ends.agent->checkTransfer(transfer), XferState::DONE);
}

// ---- while it is in flight ------------------------------------------------------------------

void refusesToPostWhatIsInFlight(const Given& given) {
  Ends ends(given, kSize, kSize, slowConfig(given.backend));
  const Transfer transfer = ends.prepare(OpType::WRITE, kSize, ends.options());
  const Bytes sent = pattern(4, kSize);
  ends.area->write(0, sent);
  ASSERT_EQ(ends.agent->postTransfer(transfer), XferState::POSTED);
  EXPECT_EQ(codeOf([&] { ends.agent->postTransfer(transfer); }), Errc::REPOST_ACTIVE);
  EXPECT_EQ(ends.agent->checkTransfer(transfer), XferState::POSTED);
  // The refusal changes nothing about the one in flight.
  ASSERT_EQ(ends.wait(transfer), XferState::DONE) << ends.errorOf(transfer);
  EXPECT_EQ(difference(sent, ends.target->read(0, kSize)), "");
  EXPECT_EQ(ends.postAndWait(transfer), XferState::DONE);
}

void keepsItsDeadline(const Given& given) {
  Ends ends(given, kSize, kSize, slowConfig(given.backend));
  TransferOptions options = ends.options();
  options.timeout = given.backend.slow_for / 10;
  const Transfer transfer = ends.prepare(OpType::WRITE, kSize, options);
  ends.agent->postTransfer(transfer);
  ASSERT_EQ(ends.wait(transfer), XferState::FAILED);
  EXPECT_EQ(ends.agent->transferError(transfer), Errc::TIMEOUT) << ends.errorOf(transfer);
  ends.agent->quiesceTransfer(transfer, given.backend.patience);
  const Bytes after = pattern(5, kSize);
  ends.target->write(0, after);
  EXPECT_EQ(changesLater(given, after, [&] { return ends.target->read(0, kSize); }), "");
}

void mayBeReleasedInFlight(const Given& given, OpType op) {
  Ends ends(given, kSize, kSize, slowConfig(given.backend));
  const Transfer transfer = ends.prepare(op, kSize, ends.options());
  ends.agent->postTransfer(transfer);
  ends.agent->releaseTransfer(transfer);
  EXPECT_EQ(codeOf([&] { ends.agent->checkTransfer(transfer); }), Errc::INVALID_PARAM);
  // Memory that was given back is the program's own.
  ends.agent->deregisterMemory(std::exchange(ends.memory, {}));
  if (op == OpType::READ || given.backend.fenced) {
    if (op == OpType::WRITE) ends.target->deregister();
    const Bytes fresh = pattern(6, kSize);
    if (op == OpType::WRITE)
      ends.target->write(0, fresh);
    else
      ends.area->write(0, fresh);
    EXPECT_EQ(changesLater(given, fresh,
                           [&] {
                             return op == OpType::WRITE ? ends.target->read(0, kSize)
                                                        : ends.area->read(0, kSize);
                           }),
              "");
  }
}

void mayBeReleasedWhileMuchIsInFlight(const Given& given) {
  const uint64_t size = given.backend.largest;
  Ends ends(given, size, size);
  for (const OpType op : {OpType::WRITE, OpType::READ}) {
    for (int i = 0; i < 5; ++i) {
      const Transfer transfer = ends.prepare(op, size, ends.options());
      ends.agent->postTransfer(transfer);
      ends.agent->releaseTransfer(transfer);
    }
  }
  const Transfer last = ends.prepare(OpType::WRITE, kSize, ends.options());
  EXPECT_EQ(ends.postAndWait(last), XferState::DONE) << ends.errorOf(last);
}

void mayLoseItsAgentInFlight(const Given& given) {
  Ends ends(given, kSize, kSize, slowConfig(given.backend));
  for (int i = 0; i < 10; ++i)
    ends.agent->postTransfer(
        ends.prepare(i % 2 ? OpType::READ : OpType::WRITE, kSize, ends.options()));
  if (given.where == Where::SELF) ends.target.reset();
  ends.agent.reset();
  const Bytes fresh = pattern(8, kSize);
  ends.area->write(0, fresh);
  EXPECT_EQ(changesLater(given, fresh, [&] { return ends.area->read(0, kSize); }), "");
}

void waitsForOneOrAll(const Given& given) {
  Ends ends(given, kSize, kSize, slowConfig(given.backend));
  std::vector<Transfer> transfers;
  for (int i = 0; i < 5; ++i)
    transfers.push_back(ends.prepareAt(OpType::WRITE, static_cast<uint64_t>(i) * 100,
                                       static_cast<uint64_t>(i) * 100, 100, ends.options()));
  for (const Transfer transfer : transfers) ends.agent->postTransfer(transfer);
  EXPECT_EQ(ends.agent->waitTransfers(transfers, Wait::ALL, 1ns), 0u);
  EXPECT_GE(ends.agent->waitTransfers(transfers, Wait::ANY, given.backend.patience), 1u);
  EXPECT_EQ(ends.agent->waitTransfers(transfers, Wait::ALL, given.backend.patience), 5u);
  for (const Transfer transfer : transfers)
    EXPECT_EQ(ends.agent->checkTransfer(transfer), XferState::DONE);
}

void signalsItsDescriptor(const Given& given) {
  Ends ends(given, kSize, kSize, slowConfig(given.backend));
  pollfd ready{ends.agent->completionFd(), POLLIN, 0};
  const Transfer transfer = ends.prepare(OpType::WRITE, kSize, ends.options());
  ends.agent->postTransfer(transfer);
  const auto deadline = Clock::now() + given.backend.patience;
  while (ends.agent->checkTransfer(transfer) == XferState::POSTED && Clock::now() < deadline) {
    ASSERT_EQ(::poll(&ready, 1, static_cast<int>(given.backend.patience.count())), 1);
    uint64_t count;
    ASSERT_EQ(::read(ready.fd, &count, sizeof count), 8);
  }
  EXPECT_EQ(ends.agent->checkTransfer(transfer), XferState::DONE) << ends.errorOf(transfer);
}

// ---- memory that is given back --------------------------------------------------------------

void refusesMemoryThatWasGivenBack(const Given& given) {
  Ends ends(given, kSize, kSize);
  const Transfer transfer = ends.prepare(OpType::READ, kSize, ends.options());
  ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
  ends.agent->deregisterMemory(std::exchange(ends.memory, {}));
  const Bytes fresh = pattern(9, kSize);
  ends.area->write(0, fresh);
  const Errc code = codeOf([&] { ends.agent->postTransfer(transfer); });
  EXPECT_EQ(code, Errc::NOT_FOUND);
  EXPECT_EQ(difference(fresh, ends.area->read(0, kSize)), "");
  EXPECT_EQ(codeOf([&] { ends.prepare(OpType::READ, kSize, ends.options()); }), Errc::NOT_FOUND);
}

void cannotWriteWhatItsOwnerGaveBack(const Given& given) {
  Ends ends(given, kSize, kSize);
  const Transfer transfer = ends.prepare(OpType::WRITE, kSize, ends.options());
  ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
  ends.target->deregister();
  const Bytes fresh = pattern(10, kSize);
  ends.target->write(0, fresh);
  XferState state = XferState::FAILED;
  codeOf([&] { state = ends.postAndWait(transfer); });
  EXPECT_EQ(state, XferState::FAILED);
  EXPECT_EQ(difference(fresh, ends.target->read(0, kSize)), "");
}

// ---- several threads ------------------------------------------------------------------------

void isPostedFromSeveralThreads(const Given& given) {
  constexpr uint64_t kThreads = 4, kRounds = 100, kPart = 20'000;
  Ends ends(given, kThreads * kPart, kThreads * kPart);
  std::array<std::string, kThreads> wrong;
  std::vector<std::thread> threads;
  std::vector<Bytes> sent;
  for (uint64_t t = 0; t < kThreads; ++t) {
    sent.push_back(pattern(t, kPart));
    ends.area->write(t * kPart, sent.back());
  }
  for (uint64_t t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      try {
        for (uint64_t round = 0; round < kRounds && wrong[t].empty(); ++round) {
          // Its own part, in other pieces each time.
          const uint64_t first = round * 97 % (kPart - 1000), length = 1000 + round;
          const Transfer transfer =
              ends.prepareAt(OpType::WRITE, t * kPart + first, t * kPart + first,
                             std::min(length, kPart - first), ends.options());
          if (ends.postAndWait(transfer) != XferState::DONE) wrong[t] = ends.errorOf(transfer);
          ends.agent->releaseTransfer(transfer);
        }
        const Transfer all =
            ends.prepareAt(OpType::WRITE, t * kPart, t * kPart, kPart, ends.options());
        if (ends.postAndWait(all) != XferState::DONE) wrong[t] = ends.errorOf(all);
      } catch (const std::exception& error) {
        wrong[t] = error.what();
      }
    });
  for (auto& thread : threads) thread.join();
  for (uint64_t t = 0; t < kThreads; ++t) {
    EXPECT_EQ(wrong[t], "") << "thread " << t;
    EXPECT_EQ(difference(sent[t], ends.target->read(t * kPart, kPart)), "") << "thread " << t;
  }
}

void isPostedOnceByTwoThreads(const Given& given) {
  // One handle, two threads that post it at the same time: one of them may.
  Ends ends(given, kSize, kSize);
  const Transfer transfer = ends.prepare(OpType::WRITE, kSize, ends.options());
  std::atomic<int> other{0};
  const auto race = [&] {
    for (int i = 0; i < 200; ++i) {
      const Errc code = codeOf([&] { ends.agent->postTransfer(transfer); });
      if (code != Errc::OK && code != Errc::REPOST_ACTIVE) ++other;
    }
  };
  std::thread first(race), second(race);
  first.join();
  second.join();
  EXPECT_EQ(other, 0);
  EXPECT_EQ(ends.wait(transfer), XferState::DONE) << ends.errorOf(transfer);
}

void worksWithoutAProgressThread(const Given& given) {
  AgentConfig config = configOf(given.backend);
  config.progress_thread = false;
  Ends ends(given, kSize, kSize, config);
  const auto pieces = std::vector<Piece>{{0, 0, kSize}};
  for (const OpType op : {OpType::WRITE, OpType::READ}) {
    const Transfer transfer = ends.prepare(op, kSize, ends.options());
    checkMove(ends, op, pieces, [&] {
      ends.agent->postTransfer(transfer);
      const auto deadline = Clock::now() + given.backend.patience;
      while (ends.agent->checkTransfer(transfer) == XferState::POSTED && Clock::now() < deadline) {
      }
      ASSERT_EQ(ends.agent->checkTransfer(transfer), XferState::DONE) << ends.errorOf(transfer);
    });
  }
}

// ---- peers and agents -----------------------------------------------------------------------

void refusesPeersThatWereInvalidated(const Given& given) {
  Ends ends(given, kSize, kSize);
  const Transfer transfer = ends.prepare(OpType::WRITE, kSize, ends.options());
  const std::string peer = ends.target->name(), metadata = ends.target->metadata();
  ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
  ends.agent->invalidatePeer(peer);
  EXPECT_FALSE(ends.agent->checkPeer(peer));
  EXPECT_EQ(codeOf([&] { ends.agent->postTransfer(transfer); }), Errc::NOT_FOUND);
  EXPECT_EQ(codeOf([&] { ends.prepare(OpType::WRITE, kSize, ends.options()); }), Errc::NOT_FOUND);
  EXPECT_EQ(codeOf([&] { ends.agent->invalidatePeer(peer); }), Errc::NOT_FOUND);
  // The same one may come back; what was prepared for it before does not.
  ends.agent->loadMetadata(metadata);
  EXPECT_EQ(codeOf([&] { ends.agent->postTransfer(transfer); }), Errc::NOT_FOUND);
  moveAndCheck(ends, OpType::WRITE, {{0, 0, kSize}}, Way::LISTS);
  moveAndCheck(ends, OpType::READ, {{0, 0, kSize}}, Way::LISTS);
}

void endsTransfersOfPeersThatAreInvalidated(const Given& given) {
  const uint64_t size = given.backend.largest;
  Ends ends(given, size, size);
  for (const OpType op : {OpType::WRITE, OpType::READ}) {
    const std::string metadata = ends.target->metadata();
    const Transfer transfer = ends.prepare(op, size, ends.options());
    ends.agent->postTransfer(transfer);
    ends.agent->invalidatePeer(ends.target->name());
    const XferState state = ends.wait(transfer);
    EXPECT_TRUE(ended(state)) << xferStateName(state);
    ends.agent->releaseTransfer(transfer);
    ends.agent->loadMetadata(metadata);
  }
  moveAndCheck(ends, OpType::WRITE, {{0, 0, kSize}}, Way::LISTS);
}

void takesMetadataAnyNumberOfTimes(const Given& given) {
  Ends ends(given, kSize, kSize);
  const Transfer transfer = ends.prepare(OpType::WRITE, kSize, ends.options());
  for (int i = 0; i < 50; ++i)
    EXPECT_EQ(ends.agent->loadMetadata(ends.target->metadata()), ends.target->name());
  EXPECT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
}

size_t openFiles() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

void leavesNothingOpen(const Given& given) {
  const auto once = [&] {
    Ends ends(given, kSize, kSize);
    const Transfer transfer = ends.prepare(OpType::WRITE, kSize, ends.options());
    ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
  };
  // Libraries open some things once and for all.
  ASSERT_NO_FATAL_FAILURE(once());
  ASSERT_NO_FATAL_FAILURE(once());
  const size_t before = openFiles();
  for (int i = 0; i < 20; ++i) ASSERT_NO_FATAL_FAILURE(once());
  EXPECT_LE(openFiles(), before);
}

}  // namespace

std::vector<Case> lifeCases() {
  const auto with = [](void (*run)(const Given&, OpType), OpType op) {
    return [run, op](const Given& given) { run(given, op); };
  };
  return {
      {"EndsWritesThatAreCancelled", kNothing, with(endsWhatIsCancelled, OpType::WRITE)},
      {"EndsReadsThatAreCancelled", kNothing, with(endsWhatIsCancelled, OpType::READ)},
      {"MovesNothingOnceCancelled", kSlow, movesNothingOnceCancelled},
      {"QuiescesATransfer", kSlow, quiescesATransfer},
      {"CancelsOnlyWhatIsInFlight", kNothing, cancelsOnlyWhatIsInFlight},
      {"RefusesToPostWhatIsInFlight", kSlow, refusesToPostWhatIsInFlight},
      {"KeepsItsDeadline", kSlow, keepsItsDeadline},
      {"MayBeReleasedInFlight_Write", kSlow, with(mayBeReleasedInFlight, OpType::WRITE)},
      {"MayBeReleasedInFlight_Read", kSlow, with(mayBeReleasedInFlight, OpType::READ)},
      {"MayBeReleasedWhileMuchIsInFlight", kNothing, mayBeReleasedWhileMuchIsInFlight},
      {"MayLoseItsAgentInFlight", kSlow, mayLoseItsAgentInFlight},
      {"WaitsForOneOrAll", kSlow, waitsForOneOrAll},
      {"SignalsItsDescriptor", kSlow, signalsItsDescriptor},
      {"RefusesMemoryThatWasGivenBack", kNothing, refusesMemoryThatWasGivenBack},
      {"CannotWriteWhatItsOwnerGaveBack", kFence, cannotWriteWhatItsOwnerGaveBack},
      {"IsPostedFromSeveralThreads", kNothing, isPostedFromSeveralThreads},
      {"IsPostedOnceByTwoThreads", kNothing, isPostedOnceByTwoThreads},
      {"WorksWithoutAProgressThread", kNothing, worksWithoutAProgressThread},
      {"RefusesPeersThatWereInvalidated", kPeer, refusesPeersThatWereInvalidated},
      {"EndsTransfersOfPeersThatAreInvalidated", kPeer, endsTransfersOfPeersThatAreInvalidated},
      {"TakesMetadataAnyNumberOfTimes", kPeer, takesMetadataAnyNumberOfTimes},
      {"LeavesNothingOpen", kNothing, leavesNothingOpen},
  };
}

}  // namespace nixl::conformance
