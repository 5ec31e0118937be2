#include "plugin/manager.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

extern const char* const kBadPluginsFolder;

namespace nixl::plugin {
namespace {

namespace fs = std::filesystem;

// ---- plugins that are linked in -------------------------------------------------------------

std::atomic<int> good_inits{0};

int32_t refuse(const nixl_engine_args*, void**, const nixl_engine_ops**, nixl_error*) { return -3; }

nixl_plugin table(const char* name) {
  nixl_plugin p{};
  p.struct_size = sizeof p;
  p.abi_version = NIXL_PLUGIN_ABI_VERSION;
  p.name = name;
  p.create = &refuse;
  return p;
}

const nixl_plugin* initGood(uint32_t host_abi) {
  EXPECT_EQ(host_abi, NIXL_PLUGIN_ABI_VERSION);
  ++good_inits;
  static const nixl_plugin plugin = table("GOOD");
  return &plugin;
}

const nixl_plugin* initHidden(uint32_t) {
  static const nixl_plugin plugin = table("HIDDEN");
  return &plugin;
}

const nixl_plugin* initShadow(uint32_t) {
  static const nixl_plugin plugin = table("WRONGABI");
  return &plugin;
}

constexpr StaticPlugin kLinkedIn[] = {{"HIDDEN", &initHidden, false}, {"GOOD", &initGood, true}};

// A folder that is removed again.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "nixl_manager_test.XXXXXX").native();
    path_ = ::mkdtemp(name.data());
  }
  ~TemporaryFolder() { fs::remove_all(path_); }
  void add(const std::string& file) const { std::ofstream(path_ / file) << "not a library"; }
  std::string path() const { return path_.native(); }

 private:
  fs::path path_;
};

Manager badPlugins(std::span<const StaticPlugin> linked_in = kLinkedIn) {
  return Manager({kBadPluginsFolder, true}, linked_in);
}

// ---- finding --------------------------------------------------------------------------------

TEST(Manager, FindsPluginsByTheNamesOfTheirFiles) {
  TemporaryFolder folder;
  for (const char* file :
       {"libplugin_ZED.so", "libplugin_ALPHA.so", "libplugin_.so", "plugin_NO.so",
        "libplugin_OLD.so.1", "libplugin_NOTE.txt", "libnixl.so"})
    folder.add(file);
  fs::create_directory(fs::path(folder.path()) / "libplugin_FOLDER.so");
  fs::create_symlink("libplugin_ZED.so", fs::path(folder.path()) / "libplugin_LINK.so");
  fs::create_symlink("gone", fs::path(folder.path()) / "libplugin_BROKEN.so");

  const Manager manager({folder.path(), true}, kLinkedIn);
  EXPECT_EQ(manager.names(), (std::vector<std::string>{"ALPHA", "GOOD", "LINK", "ZED"}));
}

TEST(Manager, LooksAtTheFolderOnce) {
  TemporaryFolder folder;
  const Manager manager({folder.path(), true}, {});
  folder.add("libplugin_LATE.so");
  EXPECT_TRUE(manager.names().empty());
}

TEST(Manager, WorksWithoutAFolder) {
  Manager manager({"/nowhere/plugins", false}, kLinkedIn);
  EXPECT_EQ(manager.names(), (std::vector<std::string>{"GOOD"}));
  EXPECT_TRUE(manager.load("GOOD").has_value());
  const auto missing = manager.load("NEEDED");
  EXPECT_EQ(missing.error().code(), Errc::NOT_FOUND);
  EXPECT_EQ(missing.error().message(),
            "no plugin \"NEEDED\"; \"/nowhere/plugins\" is not there. NIXL_PLUGIN_DIR is not set");
}

TEST(Manager, SaysWhatItFoundWhereNothingHasTheName) {
  TemporaryFolder folder;
  folder.add("libplugin_ALPHA.so");
  Manager unset({folder.path(), false}, kLinkedIn);
  EXPECT_EQ(
      unset.load("USX").error().message(),
      "no plugin \"USX\"; found ALPHA, GOOD in " + folder.path() + ". NIXL_PLUGIN_DIR is not set");
  Manager set({folder.path(), true}, {});
  EXPECT_EQ(set.load("USX").error().message(),
            "no plugin \"USX\"; found ALPHA in " + folder.path() + " (NIXL_PLUGIN_DIR)");
}

TEST(Manager, SuggestsANameThatDiffersInCase) {
  Manager manager({"/nowhere/plugins", false}, kLinkedIn);
  const auto result = manager.load("Good");
  EXPECT_EQ(result.error().code(), Errc::NOT_FOUND);
  EXPECT_EQ(result.error().message(), "no plugin \"Good\"; did you mean \"GOOD\"?");
}

TEST(PluginFolder, IsTheVariablesOrBesideTheLibrary) {
  ::setenv("NIXL_PLUGIN_DIR", "some/where", 1);
  EXPECT_TRUE(pluginFolder().chosen);
  EXPECT_EQ(pluginFolder().path, fs::absolute("some/where").native());
  for (const bool empty : {true, false}) {
    if (empty)
      ::setenv("NIXL_PLUGIN_DIR", "", 1);
    else
      ::unsetenv("NIXL_PLUGIN_DIR");
    const PluginFolder folder = pluginFolder();
    EXPECT_FALSE(folder.chosen);
    // This code lies in the test program.
    EXPECT_TRUE(fs::equivalent(fs::path(folder.path).parent_path(),
                               fs::read_symlink("/proc/self/exe").parent_path()))
        << folder.path;
    EXPECT_EQ(fs::path(folder.path).filename(), "plugins");
  }
}

// ---- loading --------------------------------------------------------------------------------

TEST(Manager, LoadsOnceWhenItIsAsked) {
  const int before = good_inits;
  Manager manager({"/nowhere/plugins", false}, kLinkedIn);
  EXPECT_EQ(good_inits, before);
  const nixl_plugin* first = manager.load("GOOD").value();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] { EXPECT_EQ(manager.load("GOOD").value(), first); });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good_inits, before + 1);
}

TEST(Manager, CreatesUnlistedPluginsAllTheSame) {
  Manager manager({"/nowhere/plugins", false}, kLinkedIn);
  EXPECT_STREQ(manager.load("HIDDEN").value()->name, "HIDDEN");
}

TEST(Manager, PrefersTheLinkedInOneToAFile) {
  constexpr StaticPlugin kShadow[] = {{"WRONGABI", &initShadow, true}};
  Manager manager = badPlugins(kShadow);
  EXPECT_TRUE(manager.load("WRONGABI").has_value());
  EXPECT_EQ(manager.info("WRONGABI").value().path, "");
}

struct BadCase {
  const char* name;
  Errc code;
  const char* words;  // somewhere in the sentence
};

class BadPlugin : public testing::TestWithParam<BadCase> {};

TEST_P(BadPlugin, CostsASentence) {
  Manager manager = badPlugins();
  for (int attempt = 0; attempt < 2; ++attempt) {  // the second finds the library open already
    const auto result = manager.load(GetParam().name);
    ASSERT_FALSE(result.has_value());
    EXPECT_EQ(result.error().code(), GetParam().code);
    const std::string& message = result.error().message();
    EXPECT_EQ(message.rfind("plugin " + std::string(GetParam().name), 0), 0u) << message;
    EXPECT_NE(message.find(kBadPluginsFolder), std::string::npos) << message;
    EXPECT_NE(message.find(GetParam().words), std::string::npos) << message;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, BadPlugin,
    testing::Values(BadCase{"WRONGABI", Errc::MISMATCH,
                            "ABI 7, this library needs 0; rebuild it against nixl/backend.h"},
                    BadCase{"NOSYMBOL", Errc::MISMATCH, "exports no nixl_backend_init"},
                    BadCase{"UNRESOLVED", Errc::NOT_FOUND,
                            "nixl_test_function_that_nobody_defines; it was built for another "
                            "version of what it uses: rebuild it here"},
                    BadCase{"NULLTABLE", Errc::MISMATCH, "does not work with ABI 0"},
                    BadCase{"SHORTTABLE", Errc::MISMATCH, "bytes, at least "},
                    BadCase{"OTHERNAME", Errc::MISMATCH, "calls itself \"SOMETHINGELSE\""},
                    BadCase{"THROWINGINIT", Errc::BACKEND, "no table today"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Manager, KeepsAnEmptyFileApart) {
  TemporaryFolder folder;
  folder.add("libplugin_EMPTY.so");
  Manager manager({folder.path(), true}, {});
  const auto result = manager.load("EMPTY");
  EXPECT_EQ(result.error().code(), Errc::NOT_FOUND);
  EXPECT_NE(result.error().message().find("plugin EMPTY: open library"), std::string::npos);
}

// ---- telling --------------------------------------------------------------------------------

TEST(Manager, DescribesAPlugin) {
  Manager manager = badPlugins();
  const BackendInfo info = manager.info("THROWINGENGINE").value();
  EXPECT_EQ(info.name, "THROWINGENGINE");
  EXPECT_EQ(info.version, "0.1");
  EXPECT_EQ(info.summary, "throws when it is made");
  EXPECT_EQ(info.mems, (std::vector<MemType>{MemType::DRAM, MemType::FILE}));
  EXPECT_EQ(info.params, (Params{{"depth", "16"}, {"plain", ""}}));
  EXPECT_EQ(info.help.at("depth"), "how deep it goes");
  EXPECT_TRUE(info.local);
  EXPECT_FALSE(info.remote);
  EXPECT_TRUE(info.notifications);
  EXPECT_EQ(fs::path(info.path).filename(), "libplugin_THROWINGENGINE.so");
  EXPECT_EQ(manager.info("NOSUCH").error().code(), Errc::NOT_FOUND);
}

TEST(Manager, SaysOfEveryPluginWhetherItCanRun) {
  Manager manager = badPlugins();
  const auto states = manager.states();
  EXPECT_EQ(states.size(), 10u);
  EXPECT_TRUE(std::ranges::is_sorted(states, {}, &PluginState::name));
  for (const PluginState& state : states) {
    const bool linked_in = state.name == "GOOD" || state.name == "HIDDEN";
    EXPECT_EQ(state.usable, linked_in) << state.name;
    EXPECT_EQ(state.why_unusable.empty(), linked_in) << state.name;
    EXPECT_EQ(state.path.empty(), linked_in) << state.name;
    if (state.name == "THROWINGENGINE") {
      EXPECT_EQ(state.why_unusable, "no such device here; plug one in");
    }
  }
}

}  // namespace
}  // namespace nixl::plugin
