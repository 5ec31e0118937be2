// The suite itself: over the hostile engine it notices what is wrong, and nothing else.
// Argument 1: the program hostile_conformance.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

extern char** environ;

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

std::string program;

struct Outcome {
  bool exited = false;  // and not by a signal or at the deadline
  int code = -1;
  std::string output;
};

Outcome runSuite(const std::string& mode, const std::string& filter) {
  std::string path = testing::TempDir() + "suite_test.XXXXXX";
  const int file = ::mkostemp(path.data(), O_CLOEXEC);
  ::unlink(path.c_str());
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, file, STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, file, STDERR_FILENO);
  std::vector<std::string> words = {program, "--gtest_filter=" + filter, "--gtest_color=no"};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  std::vector<char*> environment;
  std::string setting = "HOSTILE_MODE=" + mode;
  for (char** one = environ; *one != nullptr; ++one) environment.push_back(*one);
  environment.push_back(setting.data());
  environment.push_back(nullptr);

  pid_t child = -1;
  Outcome outcome;
  if (::posix_spawn(&child, program.c_str(), &actions, nullptr, arguments.data(),
                    environment.data()) == 0) {
    const auto deadline = Clock::now() + 120s;
    int status = 0;
    pid_t gone = 0;
    while ((gone = ::waitpid(child, &status, WNOHANG)) == 0 && Clock::now() < deadline)
      std::this_thread::sleep_for(10ms);
    if (gone == 0) {
      ::kill(child, SIGKILL);
      ::waitpid(child, &status, 0);
    }
    outcome.exited = gone == child && WIFEXITED(status);
    outcome.code = outcome.exited ? WEXITSTATUS(status) : -1;
  }
  ::posix_spawn_file_actions_destroy(&actions);
  char buffer[4096];
  off_t at = 0;
  for (ssize_t n; (n = ::pread(file, buffer, sizeof buffer, at)) > 0; at += n)
    outcome.output.append(buffer, static_cast<size_t>(n));
  ::close(file);
  return outcome;
}

// ---- what it has to notice ------------------------------------------------------------------

struct Fault {
  const char* mode;
  const char* noticed_by;
};
void PrintTo(const Fault& fault, std::ostream* out) {
  *out << fault.mode << ", noticed by " << fault.noticed_by;
}

class SuiteFails : public testing::TestWithParam<Fault> {};

TEST_P(SuiteFails, ForAnEngineThat) {
  for (const std::string where : {"HOSTILE_Self.", "HOSTILE_Pair."}) {
    const std::string test = where + GetParam().noticed_by;
    const Outcome honest = runSuite("", test);
    EXPECT_TRUE(honest.exited && honest.code == 0) << honest.output;
    EXPECT_NE(honest.output.find("[       OK ] " + test), std::string::npos) << honest.output;
    const Outcome hostile = runSuite(GetParam().mode, test);
    EXPECT_TRUE(hostile.exited) << hostile.output;
    EXPECT_EQ(hostile.code, 1) << hostile.output;
    EXPECT_NE(hostile.output.find("[  FAILED  ] " + test), std::string::npos) << hostile.output;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Modes, SuiteFails,
    testing::Values(Fault{"corrupt", "WritesAlmostAPage_Lists"},
                    Fault{"corrupt", "ReadsOddSizes_Rows"}, Fault{"short", "ReadsOneByte_Lists"},
                    Fault{"overrun", "WritesAlmostAPage_Lists"},
                    Fault{"overrun", "WritesNothing_Lists"},
                    Fault{"moves_nothing", "WritesStridedLists"},
                    Fault{"moves_nothing", "ReadsWhatIsThereAtEachPost"},
                    Fault{"early", "WritesAlmostAPage_Lists"},
                    Fault{"early", "NotificationsComeAfterTheirData"},
                    Fault{"never", "WritesAlmostAPage_Lists"},
                    Fault{"lands_after_cancel", "MovesNothingOnceCancelled"},
                    Fault{"lands_after_cancel", "KeepsItsDeadline"},
                    Fault{"loses_notifications", "NotificationsComeAfterTheirData"},
                    Fault{"loses_notifications", "NotificationsComeOnlyWhenThereIsOne"},
                    Fault{"reorders_notifications", "NotificationsComeInTheirOrder"}),
    [](const auto& info) { return std::string(info.param.mode) + "_" + info.param.noticed_by; });

// ---- what the library makes good ------------------------------------------------------------

class SuitePasses : public testing::TestWithParam<const char*> {};

TEST_P(SuitePasses, ForAnEngineThatIsMerely) {
  // Not the slowest cases: what they add is size and waiting.
  const Outcome outcome =
      runSuite(GetParam(),
               "-*Largest*:*Shuffled*:*Neighbours*:*AreCancelled*:*MayBeReleased*:"
               "*MayLose*:*Quiesces*:*Deadline*:*WaitsFor*:*Signals*:*AreInvalidated");
  EXPECT_TRUE(outcome.exited && outcome.code == 0) << outcome.output;
  EXPECT_NE(outcome.output.find("[  PASSED  ]"), std::string::npos) << outcome.output;
}

INSTANTIATE_TEST_SUITE_P(Modes, SuitePasses,
                         testing::Values("reversed", "partial", "twice", "wrong_attempt",
                                         "out_of_bounds", "bytes_too_many", "garbage_notifications",
                                         "repeats_notifications"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc != 2) return 2;
  program = argv[1];
  return RUN_ALL_TESTS();
}
