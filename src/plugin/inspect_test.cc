#include "plugin/inspect.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "base/config.h"

extern const char* const kBadPluginsFolder;

namespace nixl::plugin {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr nixl_option kVariables[] = {{"NIXL_INSPECT_TEST", "ten", "read by a plugin of a test"},
                                      {nullptr, nullptr, nullptr}};

int32_t refuse(const nixl_engine_args*, void**, const nixl_engine_ops**, nixl_error*) { return -3; }

nixl_plugin table(const char* name, decltype(nixl_plugin::inspect) inspect) {
  nixl_plugin p{};
  p.struct_size = sizeof p;
  p.abi_version = NIXL_PLUGIN_ABI_VERSION;
  p.name = name;
  p.summary = "for tests";
  p.create = &refuse;
  p.inspect = inspect;
  return p;
}

// One plugin for each way in which trying out can end.

const nixl_plugin* initTells(uint32_t) {
  static nixl_plugin plugin = table("TELLS", [](nixl_inspect_emit emit, void* to, nixl_error*) {
    emit(to, "library", "one\x01two");
    emit(to, "process", std::to_string(::getpid()).c_str());
    emit(to, nullptr, nullptr);
    std::puts("not for the terminal");
    return 0;
  });
  plugin.variables = kVariables;
  return &plugin;
}

const nixl_plugin* initPlain(uint32_t) {
  static const nixl_plugin plugin = table("PLAIN", nullptr);
  return &plugin;
}

const nixl_plugin* initOlder(uint32_t) {  // knows nothing of what tools ask
  static const nixl_plugin plugin = [] {
    nixl_plugin p =
        table("OLDER", [](nixl_inspect_emit, void*, nixl_error*) -> int32_t { abort(); });
    p.struct_size = offsetof(nixl_plugin, variables);
    return p;
  }();
  return &plugin;
}

const nixl_plugin* initRefuses(uint32_t) {
  static const nixl_plugin plugin =
      table("REFUSES", [](nixl_inspect_emit emit, void* to, nixl_error* err) {
        emit(to, "device", "none");
        std::snprintf(err->text, err->capacity, "%s", "there is no device; plug one in");
        return int32_t{-9};
      });
  return &plugin;
}

const nixl_plugin* initThrows(uint32_t) {
  static const nixl_plugin plugin =
      table("THROWS", [](nixl_inspect_emit, void*, nixl_error*) -> int32_t {
        throw std::runtime_error("across the boundary");
      });
  return &plugin;
}

const nixl_plugin* initCrashes(uint32_t) {
  static const nixl_plugin plugin =
      table("CRASHES", [](nixl_inspect_emit emit, void* to, nixl_error*) -> int32_t {
        emit(to, "before", "the end");
        std::fputs("last words\n", stderr);
        ::raise(SIGSEGV);
        return 0;
      });
  return &plugin;
}

const nixl_plugin* initExits(uint32_t) { ::_exit(7); }  // while it is loaded

const nixl_plugin* initHangs(uint32_t) {
  static const nixl_plugin plugin =
      table("HANGS", [](nixl_inspect_emit, void*, nixl_error*) -> int32_t {
        for (;;) ::pause();
      });
  return &plugin;
}

constexpr StaticPlugin kLinkedIn[] = {
    {"CRASHES", &initCrashes, true}, {"EXITS", &initExits, true},   {"OLDER", &initOlder, true},
    {"PLAIN", &initPlain, false},    {"REFUSES", &initRefuses, true}, {"TELLS", &initTells, true},
    {"THROWS", &initThrows, true},
};

PluginReport reportOf(const std::vector<PluginReport>& reports, const std::string& name) {
  for (const PluginReport& report : reports)
    if (report.state.name == name) return report;
  ADD_FAILURE() << "nothing is said of " << name;
  return {};
}

TEST(InspectPlugins, SaysHowEachOfThemEnded) {
  Manager manager({"/nowhere/plugins", false}, kLinkedIn);
  const auto reports = inspectAll(manager, seconds(30));
  ASSERT_EQ(reports.size(), 7u);

  const PluginReport tells = reportOf(reports, "TELLS");
  EXPECT_TRUE(tells.state.usable) << tells.state.why_unusable;
  EXPECT_TRUE(tells.loaded);
  EXPECT_EQ(tells.info.summary, "for tests");
  ASSERT_EQ(tells.found.size(), 3u);
  EXPECT_EQ(tells.found[0], (std::pair<std::string, std::string>("library", "one?two")));
  EXPECT_NE(tells.found[1].second, std::to_string(::getpid())) << "it ran in this process";

  EXPECT_TRUE(reportOf(reports, "PLAIN").state.usable);
  EXPECT_TRUE(reportOf(reports, "OLDER").state.usable);

  const PluginReport refuses = reportOf(reports, "REFUSES");
  EXPECT_FALSE(refuses.state.usable);
  EXPECT_EQ(refuses.state.why_unusable, "there is no device; plug one in");
  EXPECT_EQ(refuses.found.size(), 1u) << "what it found before it failed";
  EXPECT_EQ(refuses.info.name, "REFUSES");

  EXPECT_NE(reportOf(reports, "THROWS").state.why_unusable.find("across the boundary"),
            std::string::npos)
      << reportOf(reports, "THROWS").state.why_unusable;

  const PluginReport crashes = reportOf(reports, "CRASHES");
  EXPECT_FALSE(crashes.state.usable);
  EXPECT_EQ(crashes.state.why_unusable,
            "plugin CRASHES (linked in) crashed (Segmentation fault) while it was tried out; it "
            "printed: last words");
  EXPECT_EQ(crashes.found.size(), 1u);

  const PluginReport exits = reportOf(reports, "EXITS");
  EXPECT_FALSE(exits.loaded);
  EXPECT_EQ(exits.state.why_unusable,
            "plugin EXITS (linked in) ended the process (exit status 7) while it was loaded");
}

TEST(InspectPlugins, DoesNotWaitForOneThatHangs) {
  constexpr StaticPlugin kHanging[] = {{"HANGS", &initHangs, true}, {"PLAIN", &initPlain, true}};
  Manager manager({"/nowhere/plugins", false}, kHanging);
  const auto reports = inspectAll(manager, milliseconds(300));
  EXPECT_EQ(reportOf(reports, "HANGS").state.why_unusable,
            "plugin HANGS (linked in) did not answer within 300 ms while it was tried out");
  EXPECT_TRUE(reportOf(reports, "PLAIN").state.usable);
}

TEST(InspectPlugins, PutsWhatAPluginReadsIntoTheTableOfVariables) {
  Manager manager({"/nowhere/plugins", false}, kLinkedIn);
  (void)inspectAll(manager, seconds(30));
  for (const base::VariableState& state : base::configStates())
    if (state.name == "NIXL_INSPECT_TEST") {
      EXPECT_EQ(state.owner, "TELLS");
      EXPECT_EQ(state.value, "ten");
      return;
    }
  FAIL() << "NIXL_INSPECT_TEST is not in the table";
}

TEST(InspectPlugins, SaysTheSameOfBadPluginsAsLoadingThem) {
  Manager manager({kBadPluginsFolder, true}, {});
  const auto reports = inspectAll(manager, seconds(30));
  EXPECT_FALSE(reports.empty());
  for (const PluginReport& report : reports) {
    EXPECT_FALSE(report.state.usable) << report.state.name;
    const auto loaded = manager.load(report.state.name);
    EXPECT_EQ(loaded.has_value(), report.loaded) << report.state.name;
    if (!loaded.has_value()) {
      EXPECT_EQ(report.state.why_unusable, loaded.error().message());
    }
  }
}

TEST(PluginSearch, SaysWhatIsMissingFromTheFolder) {
  const Manager nowhere({"/nowhere/plugins", true}, {});
  const PluginSearch search = nowhere.search();
  EXPECT_NE(search.problem.find("/nowhere/plugins"), std::string::npos) << search.problem;
  EXPECT_NE(search.problem.find("NIXL_PLUGIN_DIR"), std::string::npos) << search.problem;
  ASSERT_EQ(search.missing.size(), builtPlugins().size());
  for (size_t i = 0; i < search.missing.size(); ++i) {
    const std::string name = builtPlugins()[i];
    EXPECT_EQ(search.missing[i].path, "/nowhere/plugins/libplugin_" + name + ".so");
  }
  const Manager linked({kBadPluginsFolder, false}, staticPlugins());
  EXPECT_EQ(linked.search().problem, "");
  for (const PluginState& missing : linked.search().missing)
    for (const StaticPlugin& plugin : staticPlugins()) EXPECT_NE(missing.name, plugin.name);
}

}  // namespace
}  // namespace nixl::plugin
