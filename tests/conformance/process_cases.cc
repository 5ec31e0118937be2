// Another process that is killed, stopped, or comes back as somebody else.

#include <chrono>
#include <thread>

#include "cases.h"

namespace nixl::conformance {

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr uint64_t kSize = 1 << 20;

ProcessTarget& process(Ends& ends) { return static_cast<ProcessTarget&>(*ends.target); }

// Posts and waits; FAILED also where the post itself is refused.
XferState attempt(Ends& ends, Transfer transfer) {
  XferState state = XferState::FAILED;
  codeOf([&] { state = ends.postAndWait(transfer); });
  return state;
}

// After whatever happened to its peer, the agent works with another one.
void worksWithAnother(const Given& given, Ends& ends) {
  ends.target =
      Target::make(given.where, given.backend, "conformance-successor", kSize, *ends.agent);
  ends.agent->loadMetadata(ends.target->metadata());
  ends.target->load(ends.agent->metadata());
  moveAndCheck(ends, OpType::WRITE, {{0, 0, kSize}}, Way::LISTS);
  moveAndCheck(ends, OpType::READ, {{0, 0, kSize}}, Way::LISTS);
}

void noticesAPeerKilledBefore(const Given& given) {
  for (const OpType op : {OpType::WRITE, OpType::READ}) {
    Ends ends(given, kSize, kSize);
    const Transfer transfer = ends.prepare(op, kSize, ends.options());
    process(ends).kill();
    EXPECT_EQ(attempt(ends, transfer), XferState::FAILED);
    worksWithAnother(given, ends);
  }
}

void noticesAPeerKilledMeanwhile(const Given& given) {
  for (const OpType op : {OpType::WRITE, OpType::READ}) {
    const uint64_t size = given.backend.largest;
    Ends ends(given, size, size);
    const Transfer transfer = ends.prepare(op, size, ends.options());
    ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
    std::thread killer([&] {
      std::this_thread::sleep_for(20ms);
      process(ends).kill();
    });
    const auto deadline = Clock::now() + given.backend.patience;
    XferState state = XferState::DONE;
    while (state == XferState::DONE && Clock::now() < deadline) state = attempt(ends, transfer);
    killer.join();
    EXPECT_EQ(state, XferState::FAILED);
    worksWithAnother(given, ends);
  }
}

void noticesAPeerKilledAfterwards(const Given& given) {
  Ends ends(given, kSize, kSize);
  const Transfer write = ends.prepare(OpType::WRITE, kSize, ends.options());
  const Transfer read = ends.prepare(OpType::READ, kSize, ends.options());
  ASSERT_EQ(ends.postAndWait(write), XferState::DONE) << ends.errorOf(write);
  ASSERT_EQ(ends.postAndWait(read), XferState::DONE) << ends.errorOf(read);
  process(ends).kill();
  EXPECT_EQ(attempt(ends, write), XferState::FAILED);
  EXPECT_EQ(attempt(ends, read), XferState::FAILED);
  // What was done stays done.
  EXPECT_EQ(ends.agent->checkTransfer(write), XferState::FAILED);
  if (given.backend.notifications) {
    const auto deadline = Clock::now() + given.backend.patience;
    Errc code = Errc::OK;
    while (code == Errc::OK && Clock::now() < deadline)
      code = codeOf([&] { ends.agent->sendNotification(ends.target->name(), "are you there?"); });
    EXPECT_TRUE(code == Errc::REMOTE_DISCONNECT || code == Errc::NOT_FOUND) << errcName(code);
  }
  worksWithAnother(given, ends);
}

void survivesAPeerThatIsStopped(const Given& given) {
  Ends ends(given, kSize, kSize);
  TransferOptions options = ends.options();
  options.timeout = 500ms;
  const Transfer transfer = ends.prepare(OpType::WRITE, kSize, options);
  ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
  process(ends).stop();
  // Some engines move bytes without the peer's help; the others must not wait for ever.
  const XferState state = attempt(ends, transfer);
  EXPECT_TRUE(state == XferState::DONE ||
              (state == XferState::FAILED && ends.agent->transferError(transfer) == Errc::TIMEOUT))
      << xferStateName(state) << " " << ends.errorOf(transfer);
  process(ends).resume();
  const auto deadline = Clock::now() + given.backend.patience;
  XferState again = XferState::FAILED;
  while (again != XferState::DONE && Clock::now() < deadline) {
    again = attempt(ends, transfer);
    std::this_thread::sleep_for(10ms);
  }
  EXPECT_EQ(again, XferState::DONE) << ends.errorOf(transfer);
  ends.agent->releaseTransfer(transfer);
  moveAndCheck(ends, OpType::WRITE, {{0, 0, kSize}}, Way::LISTS);
}

void mayBeDestroyedWhileItsPeerIsStopped(const Given& given) {
  Ends ends(given, kSize, kSize);
  const Transfer transfer = ends.prepare(OpType::READ, kSize, ends.options());
  process(ends).stop();
  codeOf([&] { ends.agent->postTransfer(transfer); });
  const auto begin = Clock::now();
  ends.agent.reset();
  EXPECT_LT(Clock::now() - begin, given.backend.patience);
  process(ends).resume();
}

void meetsAPeerThatWasStartedAgain(const Given& given) {
  Ends ends(given, kSize, kSize);
  const Transfer former = ends.prepare(OpType::WRITE, kSize, ends.options());
  ASSERT_EQ(ends.postAndWait(former), XferState::DONE) << ends.errorOf(former);
  const std::string former_metadata = ends.target->metadata();
  const std::string name = ends.target->name();
  process(ends).kill();
  ends.target = Target::make(given.where, given.backend, name, kSize, *ends.agent);
  EXPECT_EQ(ends.agent->loadMetadata(ends.target->metadata()), name);
  ends.target->load(ends.agent->metadata());
  EXPECT_EQ(codeOf([&] { ends.agent->postTransfer(former); }), Errc::NOT_FOUND);
  moveAndCheck(ends, OpType::WRITE, {{0, 0, kSize}}, Way::LISTS);
  moveAndCheck(ends, OpType::READ, {{0, 0, kSize}}, Way::LISTS);
  // The former one is history.
  EXPECT_EQ(codeOf([&] { ends.agent->loadMetadata(former_metadata); }), Errc::NOT_ALLOWED);
}

}  // namespace

std::vector<Case> processCases() {
  return {
      {"NoticesAPeerKilledBefore", kProcess, noticesAPeerKilledBefore},
      {"NoticesAPeerKilledMeanwhile", kProcess, noticesAPeerKilledMeanwhile},
      {"NoticesAPeerKilledAfterwards", kProcess, noticesAPeerKilledAfterwards},
      {"SurvivesAPeerThatIsStopped", kProcess, survivesAPeerThatIsStopped},
      {"MayBeDestroyedWhileItsPeerIsStopped", kProcess, mayBeDestroyedWhileItsPeerIsStopped},
      {"MeetsAPeerThatWasStartedAgain", kProcess, meetsAPeerThatWasStartedAgain},
  };
}

}  // namespace nixl::conformance
