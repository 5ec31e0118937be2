// The search for libucp, over folders made for it: no UCX is needed.
#include "ucx_library.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "nixl/backend.h"

namespace nixl::ucx {
namespace {

namespace fs = std::filesystem;

class UcxSearch : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "nixl-ucx-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = fs::canonical(name);
  }
  void TearDown() override { fs::remove_all(root_); }

  // A file that says that it is `version`, as libucp does.
  std::string make(const std::string& dir, const std::string& version, bool rdma = false) {
    fs::create_directories(root_ / dir / "ucx");
    const fs::path file = root_ / dir / "libucp.so.0";
    std::ofstream(file, std::ios::binary)
        << "\x7f" "ELF needs 1.22 or later" << '\0' << "A" << version << '\0' << "rest";
    if (rdma) std::ofstream(root_ / dir / "ucx" / "libuct_ib.so.0") << "";
    return file.string();
  }
  std::string dir(const std::string& name) const { return (root_ / name).string(); }
  static std::string refusal(const SearchPlace& place) {
    try {
      return "chose " + choose(place).path;
    } catch (const BackendFailure& failure) {
      return failure.what();
    }
  }

  fs::path root_;
};

TEST_F(UcxSearch, ReadsTheVersionFromTheFile) {
  EXPECT_EQ(versionOf(make("a", "1.13.1")), (Version{1, 13, 1}));
  EXPECT_EQ(versionOf(make("b", "words")), Version{});
  EXPECT_EQ(versionOf(dir("missing")), Version{});
}

TEST_F(UcxSearch, TakesTheNewest) {
  SearchPlace place;
  make("system", "1.13.1");
  const std::string newer = make("site/libucx/lib", "1.22.0");
  place.system_dirs = {dir("nothing"), dir("system")};
  place.package_roots = {dir("elsewhere"), dir("site")};
  EXPECT_EQ(choose(place).path, newer);
}

TEST_F(UcxSearch, PrefersTheOneThatCanUseTheHostsRdmaDevices) {
  SearchPlace place;
  const std::string older = make("system", "1.13.1", true);
  const std::string newer = make("site/libucx/lib", "1.22.0");
  place.system_dirs = {dir("system")};
  place.package_roots = {dir("site")};
  EXPECT_EQ(choose(place).path, newer);
  place.rdma_devices = true;
  EXPECT_EQ(choose(place).path, older);
}

TEST_F(UcxSearch, ObeysOptionThenEnvironmentThenWhatIsMapped) {
  SearchPlace place;
  const std::string system = make("system", "1.13.1");
  const std::string other = make("other", "1.20.1");
  const std::string third = make("third/lib", "1.21.0");
  place.system_dirs = {dir("system")};
  place.environment = dir("other");
  EXPECT_EQ(choose(place).path, other);
  place.option = dir("third");  // a prefix is as good as its lib folder
  EXPECT_EQ(choose(place).path, third);
  place.option = system;
  EXPECT_EQ(choose(place).path, system);
  place.option = place.environment = "";
  place.mapped = {other};
  EXPECT_EQ(choose(place).path, other);
}

TEST_F(UcxSearch, RefusesASecondOneNamingBoth) {
  SearchPlace place;
  const std::string mapped = make("mapped", "1.13.1"), wanted = make("wanted", "1.22.0");
  place.mapped = {mapped};
  place.option = wanted;
  const std::string sentence = refusal(place);
  EXPECT_NE(sentence.find(mapped), std::string::npos) << sentence;
  EXPECT_NE(sentence.find(wanted), std::string::npos) << sentence;
  fs::create_symlink(mapped, root_ / "alias.so");  // the same file by another name is no second one
  place.option = dir("alias.so");
  EXPECT_EQ(refusal(place), "chose " + dir("alias.so"));
}

TEST_F(UcxSearch, SaysWhereItLooked) {
  SearchPlace place;
  place.system_dirs = {dir("system")};
  EXPECT_NE(refusal(place).find(dir("system")), std::string::npos);
  EXPECT_NE(refusal(place).find("NIXL_UCX_PATH"), std::string::npos);
  place.environment = dir("gone");
  EXPECT_NE(refusal(place).find(dir("gone")), std::string::npos);
}

TEST_F(UcxSearch, PassesOverWhatIsTooOld) {
  SearchPlace place;
  const std::string old = make("old", "1.12.1"), silent = make("silent", "no version");
  place.system_dirs = {dir("old")};
  EXPECT_EQ(refusal(place), "found only " + old +
                                " (1.12.1), and version 1.13 or newer is needed; install a newer "
                                "one (pip install libucx-cu12), or name it in NIXL_UCX_PATH");
  place.rdma_devices = true;
  make("old", "1.12.1", true);  // RDMA does not make it younger
  place.system_dirs = {dir("old"), dir("silent")};
  EXPECT_EQ(choose(place).path, silent) << "what does not say its version is tried";
  EXPECT_EQ(candidates(place).size(), 2u) << "and both are shown";
  place.environment = dir("old");
  EXPECT_EQ(refusal(place), "NIXL_UCX_PATH names " + old +
                                ", which is version 1.12.1; 1.13 or newer is needed");
}

}  // namespace
}  // namespace nixl::ucx
