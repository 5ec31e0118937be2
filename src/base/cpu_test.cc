#include "base/cpu.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace nixl::base {
namespace {

using Cores = std::optional<unsigned>;

struct CpuMaxCase {
  const char* name;
  const char* text;
  Cores cores;
};

class CoresFromCpuMax : public testing::TestWithParam<CpuMaxCase> {};

TEST_P(CoresFromCpuMax, RoundsUp) {
  EXPECT_EQ(detail::coresFromCpuMax(GetParam().text), GetParam().cores);
}

INSTANTIATE_TEST_SUITE_P(Texts, CoresFromCpuMax,
                         testing::Values(CpuMaxCase{"NoLimit", "max 100000\n", {}},
                                         CpuMaxCase{"Whole", "200000 100000\n", 2u},
                                         CpuMaxCase{"RoundedUp", "150000 100000\n", 2u},
                                         CpuMaxCase{"LessThanOne", "1000 100000\n", 1u},
                                         CpuMaxCase{"Empty", "", {}},
                                         CpuMaxCase{"NoPeriod", "100000\n", {}},
                                         CpuMaxCase{"ZeroPeriod", "100000 0\n", {}},
                                         CpuMaxCase{"Negative", "-5 100000\n", {}},
                                         CpuMaxCase{"Garbage", "abc def\n", {}}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(CoresFromCfs, KnowsThatMinusOneIsNoLimit) {
  EXPECT_EQ(detail::coresFromCfs("-1\n", "100000\n"), Cores());
  EXPECT_EQ(detail::coresFromCfs("250000\n", "100000\n"), Cores(3));
  EXPECT_EQ(detail::coresFromCfs("", ""), Cores());
}

TEST(CgroupPath, FindsTheController) {
  constexpr const char* kText =
      "12:memory:/docker/m\n"
      "4:cpu,cpuacct:/docker/c\n"
      "1:name=systemd:/docker/s\n"
      "0::/docker/v2\n";
  EXPECT_EQ(detail::cgroupPath(kText, "cpu"), "/docker/c");
  EXPECT_EQ(detail::cgroupPath(kText, "cpuacct"), "/docker/c");
  EXPECT_EQ(detail::cgroupPath(kText, ""), "/docker/v2");
  EXPECT_EQ(detail::cgroupPath(kText, "cpuset"), std::nullopt);
  EXPECT_EQ(detail::cgroupPath("garbage\n\n::\n", ""), std::nullopt);
}

class CoresFromCgroups : public testing::Test {
 protected:
  CoresFromCgroups() {
    char path[] = "/tmp/nixl_cpu_test_XXXXXX";
    mount_ = mkdtemp(path);
  }
  ~CoresFromCgroups() override { std::filesystem::remove_all(mount_); }

  void write(const std::string& path, const std::string& text) {
    std::filesystem::path file = mount_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  std::string mount_;
};

TEST_F(CoresFromCgroups, TakesTheTightestOnTheWayUp) {
  write("/a/b/cpu.max", "800000 100000\n");
  write("/a/cpu.max", "300000 100000\n");
  write("/cpu.max", "max 100000\n");
  EXPECT_EQ(detail::coresFromCgroups("0::/a/b\n", mount_), Cores(3));
}

TEST_F(CoresFromCgroups, LooksAtTheTopWhenThePathIsTheHosts) {
  write("/cpu.max", "100000 100000\n");
  EXPECT_EQ(detail::coresFromCgroups("0::/kubepods/pod1/abc\n", mount_), Cores(1));
  EXPECT_EQ(detail::coresFromCgroups("0::/\n", mount_), Cores(1));
}

TEST_F(CoresFromCgroups, ReadsVersionOne) {
  write("/cpu,cpuacct/a/cpu.cfs_quota_us", "400000\n");
  write("/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(detail::coresFromCgroups("4:cpu,cpuacct:/a\n0::/\n", mount_), Cores(4));
}

TEST_F(CoresFromCgroups, FindsNoLimitWhereThereIsNone) {
  EXPECT_EQ(detail::coresFromCgroups("", mount_), Cores());
  EXPECT_EQ(detail::coresFromCgroups("0::/a\n", mount_), Cores());
}

TEST(UsableCores, AreAtLeastOneAndStayTheSame) {
  EXPECT_GE(usableCores(), 1u);
  EXPECT_EQ(usableCores(), usableCores());
}

}  // namespace
}  // namespace nixl::base
