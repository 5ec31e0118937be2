#include "nixl-info/files.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace nixl::info {
namespace {

namespace fs = std::filesystem;

class FilesTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "nixl-files-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
  }
  void TearDown() override { fs::remove_all(root_); }
  void write(const std::string& path, const std::string& text) const {
    fs::create_directories(fs::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }

  std::string root_;
};

TEST_F(FilesTest, AreReadBelowTheRoot) {
  write("/sys/state", "  up\n");
  write("/sys/speed", "10000\n");
  const Files files(root_);
  EXPECT_EQ(files.text("/sys/state"), "up");
  EXPECT_EQ(files.number("/sys/speed"), 10000);
  EXPECT_EQ(files.number("/sys/state"), std::nullopt);
  EXPECT_EQ(files.entries("/sys"), (std::vector<std::string>{"speed", "state"}));
  EXPECT_TRUE(files.entries("/nothing").empty());
  EXPECT_TRUE(files.exists("/sys/state"));
}

TEST_F(FilesTest, SayWhyTheyCannotBeRead) {
  write("/secret", "text");
  fs::create_directories(root_ + "/folder");
  const Files files(root_);
  EXPECT_EQ(files.textOrWhy("/gone"), "not there");
  EXPECT_EQ(files.textOrWhy("/folder"), "cannot be read: Is a directory");
  fs::permissions(root_ + "/secret", fs::perms::none);
  if (::geteuid() != 0) {
    EXPECT_EQ(files.textOrWhy("/secret"), "cannot be read: Permission denied");
  }
}

TEST_F(FilesTest, ValuesStandBehindTheirKeys) {
  const std::string text = "MemTotal:  100 kB\nMem: 5\nPRETTY_NAME=\"A B\"\nmodel name\t: X\n";
  EXPECT_EQ(Files::valueOf(text, "MemTotal"), "100 kB");
  EXPECT_EQ(Files::valueOf(text, "Mem"), "5");
  EXPECT_EQ(Files::valueOf(text, "PRETTY_NAME"), "A B");
  EXPECT_EQ(Files::valueOf(text, "model name"), "X");
  EXPECT_EQ(Files::valueOf(text, "model"), std::nullopt);
}

TEST_F(FilesTest, LimitsComeFromEveryGroupUpToTheRoot) {
  write("/proc/self/cgroup", "0::/a/b\n");
  write("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  write("/sys/fs/cgroup/a/cpu.max", "150000 100000\n");
  const Files two(root_);
  EXPECT_EQ(two.cgroupLimits("cpu.max", "cpu/cpu.cfs_quota_us"),
            (std::vector<std::string>{"max 100000", "150000 100000"}));

  write("/proc/self/cgroup", "4:cpu,cpuacct:/x\n3:memory:/y\n");
  write("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "50000\n");
  write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "4096\n");
  EXPECT_EQ(two.cgroupLimits("cpu.max", "cpu/cpu.cfs_quota_us"),
            std::vector<std::string>{"50000"});
  EXPECT_EQ(two.cgroupLimits("memory.max", "memory/memory.limit_in_bytes"),
            std::vector<std::string>{"4096"});
}

}  // namespace
}  // namespace nixl::info
