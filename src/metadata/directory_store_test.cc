#include "metadata/directory_store.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/crc32c.h"
#include "base/fd.h"
#include "metadata/store_suite.h"

namespace nixl::metadata {
namespace {

namespace fs = std::filesystem;

// Removed when the process ends.
class Root {
 public:
  Root() {
    std::string path = (fs::temp_directory_path() / "nixl-store-XXXXXX").string();
    root_ = mkdtemp(path.data());
  }
  ~Root() {
    std::error_code ignored;
    if (getpid() == owner_) fs::remove_all(root_, ignored);
  }
  std::string fresh() { return root_ + "/" + std::to_string(++number_); }

 private:
  std::string root_;
  int number_ = 0;
  pid_t owner_ = getpid();
};

std::string freshPath() {
  static Root root;
  return root.fresh();
}

const bool registered = registerStoreSuite({"Directory", [] { return "dir:" + freshPath(); }});

std::unique_ptr<Store> opened(const std::string& path) {
  auto store = openStore("dir:" + path);
  EXPECT_TRUE(store.has_value()) << store.status().message();
  return *std::move(store);
}

Result<Store::Revision> put(Store& store, std::string key, std::string value,
                            base::Deadline deadline = StoreCase::soon()) {
  StoreCase::Answer<Store::Revision> answer;
  store.put(std::move(key), std::move(value), {}, deadline, answer.callback());
  return answer.next();
}

Result<StoreEntry> get(Store& store, std::string key) {
  StoreCase::Answer<StoreEntry> answer;
  store.get(std::move(key), StoreCase::soon(), answer.callback());
  return answer.next();
}

struct NameCase {
  const char* name;
  std::string key;
  std::string file;
};

class FileNameOfKey : public testing::TestWithParam<NameCase> {};

TEST_P(FileNameOfKey, IsSafe) { EXPECT_EQ(fileNameOfKey(GetParam().key), GetParam().file); }

INSTANTIATE_TEST_SUITE_P(
    Keys, FileNameOfKey,
    testing::Values(NameCase{"Plain", "agent-0_A", "k.agent-0_A"},
                    NameCase{"Parent", "..", "k.%2E%2E"},
                    NameCase{"Slash", "/a/b", "k.%2Fa%2Fb"},
                    NameCase{"Zero", std::string(1, '\0'), "k.%00"},
                    NameCase{"Percent", "%2F", "k.%252F"},
                    NameCase{"Utf8", "\xc3\xa9", "k.%C3%A9"},
                    NameCase{"Longest", std::string(198, 'x'), "k." + std::string(198, 'x')},
                    NameCase{"Longer", std::string(199, 'x'),
                             "k." + std::string(158, 'x') + "~" +
                                 fileNameOfKey(std::string(199, 'x')).substr(161)}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(DirectoryStore, KeepsWhatItHoldsWhenClosed) {
  std::string path = freshPath();
  auto revision = put(*opened(path), "a", "1");
  ASSERT_TRUE(revision.has_value());
  auto again = opened(path);
  EXPECT_EQ(get(*again, "a")->value, "1");
  EXPECT_GT(*put(*again, "b", "2"), *revision);
}

TEST(DirectoryStore, IsItsOwnersAlone) {
  std::string path = freshPath();
  ASSERT_TRUE(put(*opened(path), "a", "secret").has_value());
  struct stat found;
  ASSERT_EQ(stat(path.c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0700u);
  ASSERT_EQ(stat((path + "/k.a").c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0077, 0u);
}

TEST(DirectoryStore, TellsWatchesOfOtherProcesses) {
  std::string path = freshPath();
  pid_t child = fork();  // before there are threads, for which sanitizers ask
  if (child == 0) {
    auto other = opened(path);
    base::Deadline deadline = StoreCase::soon();
    while (!get(*other, "w/go").has_value() && !deadline.expired()) usleep(1000);
    StoreCase::Answer<LeaseId> lease;
    other->lease(std::chrono::milliseconds(200), StoreCase::soon(), lease.callback());
    StoreCase::Answer<Store::Revision> answer;
    other->put("w/child", "here", {.lease = *lease.next()}, StoreCase::soon(), answer.callback());
    (void)put(*other, "w/last", "1");
    _exit(answer.next().has_value() ? 0 : 1);  // dies without a word
  }
  auto store = opened(path);
  StoreCase::Changes changes;
  store->watch("w/", 0, changes.callback());
  ASSERT_TRUE(put(*store, "w/go", "now").has_value());
  StoreCase::awaitChange(changes, "w/last", "1");
  EXPECT_TRUE(get(*store, "w/last").has_value());
  StoreCase::awaitChange(changes, "w/child", "");
  int status = 1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(DirectoryStore, FailsAtOnceInAForkedChild) {
  auto store = opened(freshPath());
  pid_t child = fork();
  if (child == 0) {
    bool forked = put(*store, "a", "1").status().code() == Errc::FORKED;
    store.reset();
    _exit(forked ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(put(*store, "a", "1").has_value());
}

TEST(DirectoryStore, WaitsForTheLockNoLongerThanTheDeadline) {
  std::string path = freshPath();
  auto store = opened(path);
  Result<base::Fd> other = base::Fd::open(path + "/state", O_RDWR);
  ASSERT_TRUE(other.has_value());
  ASSERT_EQ(flock(other->get(), LOCK_EX), 0);
  auto late = put(*store, "a", "1", base::Deadline::after(std::chrono::milliseconds(50)));
  EXPECT_EQ(late.status().code(), Errc::TIMEOUT) << late.status().message();
  // And closing waits for nobody.
  StoreCase::Answer<Store::Revision> answer;
  store->put("a", "1", {}, base::Deadline::never(), answer.callback());
  store.reset();
  EXPECT_EQ(answer.next().status().code(), Errc::CANCELED);
}

TEST(DirectoryStore, CompletesATransactionThatWasCutShort) {
  std::string path = freshPath();
  auto store = opened(path);
  // As if the process had died when its journal was there and nothing else was.
  StoreTransaction transaction;
  transaction.puts = {{"a", "1"}, {"b", "2"}};
  StoreCase::Answer<Store::Revision> answer;
  store->transact(transaction, StoreCase::soon(), answer.callback());
  auto revision = answer.next();
  ASSERT_TRUE(revision.has_value());
  auto file = [&](const std::string& name) { return *base::readFile(path + "/" + name); };
  auto u64 = [](uint64_t value) { return std::string(reinterpret_cast<char*>(&value), 8); };
  std::string journal = "NIXLJRN1";
  for (std::string each : {file("k.a"), file("k.b")}) journal += u64(each.size()) + each;
  fs::remove(path + "/k.a");
  fs::remove(path + "/k.b");
  uint32_t crc = base::crc32c(journal.data(), journal.size());
  std::ofstream(path + "/journal") << journal << std::string(reinterpret_cast<char*>(&crc), 4);
  EXPECT_EQ(*get(*store, "a"), (StoreEntry{"a", "1", *revision}));
  EXPECT_EQ(*get(*store, "b"), (StoreEntry{"b", "2", *revision}));
  EXPECT_FALSE(fs::exists(path + "/journal"));
  std::ofstream(path + "/journal") << "damaged";  // rename prevents it, a host that crashes may not
  transaction.puts = {{"c", "3"}, {"d", "4"}};
  store->transact(transaction, StoreCase::soon(), answer.callback());
  ASSERT_TRUE(answer.next().has_value());
  EXPECT_FALSE(fs::exists(path + "/journal"));
}

TEST(DirectoryStore, LeavesDamagedFilesOut) {
  std::string path = freshPath();
  auto store = opened(path);
  ASSERT_TRUE(put(*store, "good", "1").has_value());
  ASSERT_TRUE(put(*store, "bad", "1").has_value());
  std::ofstream(path + "/k.bad") << "rubbish";
  std::ofstream(path + "/k.stranger") << "rubbish";
  EXPECT_EQ(get(*store, "bad").status().code(), Errc::MISMATCH);
  StoreCase::Answer<StorePage> answer;
  store->list("", "", 100, StoreCase::soon(), answer.callback());
  auto page = answer.next();
  ASSERT_TRUE(page.has_value());
  ASSERT_EQ(page->entries.size(), 1u);
  EXPECT_EQ(page->entries[0].key, "good");
}

TEST(DirectoryStore, CannotBeOpenedWhereThereIsNoPlace) {
  EXPECT_FALSE(openStore("dir:").has_value());
  auto store = openStore("dir:/proc/no-such/place");
  ASSERT_FALSE(store.has_value());
  EXPECT_NE(store.error().message().find("/proc/no-such/place"), std::string::npos);
}

}  // namespace
}  // namespace nixl::metadata
