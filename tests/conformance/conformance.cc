#include "conformance.h"

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "cases.h"
#include "target.h"

namespace nixl::conformance {

namespace {

constexpr std::chrono::minutes kLongestCase{3};

std::vector<BackendUnderTest>& backends() {
  static auto& list = *new std::vector<BackendUnderTest>;
  return list;
}

const std::string& labelOf(const BackendUnderTest& backend) {
  return backend.label.empty() ? backend.name : backend.label;
}

std::string whyUnavailable(const BackendUnderTest& backend) {
  if (backend.unavailable) return backend.unavailable();
  for (const PluginState& plugin : pluginStates())
    if (plugin.name == backend.name) return plugin.why_unusable;
  return "";  // creating it says why it is not there, and that is a failure
}

// Why no case applies with a target there.
std::string whyNotThere(const BackendUnderTest& backend, Where where) {
  if (where == Where::SELF)
    return backend.within_agent ? "" : backend.name + " moves no bytes inside one agent";
  if (!backend.remote_agents) return backend.name + " moves no bytes between agents";
  if (where == Where::PROCESS && !backend.processes)
    return backend.name + " reaches agents of its own process only";
  return "";
}

std::string whyNotApplicable(const Case& c, const BackendUnderTest& backend) {
  if ((c.needs & kNotifications) && !backend.notifications)
    return backend.name + " has no notifications";
  if ((c.needs & kFence) && !backend.fenced)
    return backend.name + " cannot keep peers from writing memory that was given back";
  if ((c.needs & kSlow) && backend.slow.empty())
    return backend.name + " has no option that keeps a transfer in flight";
  for (const auto& [kind, device] : {std::pair(backend.local, backend.local_device),
                                     std::pair(backend.remote, backend.remote_device)})
    if (Area::make(kind, 1, device) == nullptr)
      return std::string("there is no ") + memTypeName(kind) + " memory to test with, number " +
             std::to_string(device);
  return "";
}

// True where the case makes no sense; then it is not even registered.
bool senseless(const Case& c, const BackendUnderTest& backend, Where where) {
  return ((c.needs & kPeer) && where == Where::SELF) ||
         ((c.needs & kProcess) && where != Where::PROCESS) ||
         ((c.needs & kSilent) && backend.notifications);
}

// Ends the program when a case does not end: a hang is a failure too.
class Watchdog {
 public:
  Watchdog() : thread_([this] { run(); }) {}
  ~Watchdog() {
    {
      std::lock_guard lock(mutex_);
      over_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, kLongestCase, [this] { return over_; })) return;
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    std::fprintf(stderr, "%s.%s hangs\n", test->test_suite_name(), test->name());
    std::abort();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool over_ = false;
  std::thread thread_;  // the last one: it uses the others
};

class ConformanceTest : public testing::Test {
 public:
  ConformanceTest(const BackendUnderTest& backend, Where where, Case c)
      : given_{backend, where}, case_(std::move(c)) {}

  void TestBody() override {
    const std::string unavailable = whyUnavailable(given_.backend);
    if (!unavailable.empty()) GTEST_SKIP() << unavailable;
    const std::string reason = whyNotApplicable(case_, given_.backend);
    if (!reason.empty()) GTEST_SKIP() << reason;
    Watchdog watchdog;
    case_.run(given_);
  }

 private:
  const Given given_;
  const Case case_;
};

class NotThere : public testing::Test {
 public:
  explicit NotThere(std::string why) : why_(std::move(why)) {}
  void TestBody() override { GTEST_SKIP() << why_; }

 private:
  const std::string why_;
};

void registerAll() {
  std::vector<Case> cases;
  for (const auto& some :
       {argumentCases(), dataCases(), notificationCases(), lifeCases(), processCases()})
    cases.insert(cases.end(), some.begin(), some.end());
  for (const BackendUnderTest& backend : backends())
    for (const Where where : {Where::SELF, Where::PAIR, Where::PROCESS}) {
      const std::string suite = labelOf(backend) + "_" + whereName(where);
      const std::string why = whyNotThere(backend, where);
      if (!why.empty()) {
        testing::RegisterTest(suite.c_str(), "NoneApplies", nullptr, nullptr, __FILE__, __LINE__,
                              [why]() -> testing::Test* { return new NotThere(why); });
        continue;
      }
      for (const Case& c : cases)
        if (!senseless(c, backend, where))
          testing::RegisterTest(suite.c_str(), c.name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                                [&backend, where, c]() -> testing::Test* {
                                  return new ConformanceTest(backend, where, c);
                                });
    }
}

}  // namespace

void registerBackendConformance(BackendUnderTest backend) {
  backends().push_back(std::move(backend));
}

}  // namespace nixl::conformance

int main(int argc, char** argv) {
  using namespace nixl::conformance;
  ProcessTarget::runIfAsked(argc, argv, backends());
  testing::InitGoogleTest(&argc, argv);
  registerAll();
  return RUN_ALL_TESTS();
}
