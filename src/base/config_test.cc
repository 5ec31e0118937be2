#include "base/config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>

namespace nixl::base {
namespace {

using std::chrono::microseconds;

// Variables of a make-believe plugin: the tests of parsing do not depend on what nixl has.
const std::vector<Variable>& testVariables() {
  static const std::vector<Variable> variables = {
      {.name = "NIXL_TEST_BOOL",
       .type = VariableType::BOOL,
       .default_text = "false",
       .help = "for tests",
       .aliases = {"NIXL_TEST_FLAG"}},
      {.name = "NIXL_TEST_INT",
       .type = VariableType::INT,
       .default_text = "5",
       .help = "for tests",
       .minimum = 1,
       .maximum = 100},
      {.name = "NIXL_TEST_SIZE",
       .type = VariableType::SIZE,
       .default_text = "4KB",
       .help = "for tests"},
      {.name = "NIXL_TEST_DURATION",
       .type = VariableType::DURATION_US,
       .default_text = "5ms",
       .help = "for tests"},
      {.name = "NIXL_TEST_STRING", .default_text = "abc", .help = "for tests"},
      {.name = "NIXL_TEST_PATH", .type = VariableType::PATH, .help = "for tests"},
      {.name = "NIXL_TEST_ENUM",
       .type = VariableType::ENUM,
       .default_text = "one",
       .help = "for tests",
       .words = {"one", "Two"}},
      {.name = "NIXL_TEST_ENDPOINT", .type = VariableType::ENDPOINT, .help = "for tests"},
      {.name = "NIXL_TEST_ENDPOINTS", .type = VariableType::ENDPOINTS, .help = "for tests"},
      {.name = "NIXL_TEST_SECRET",
       .type = VariableType::INT,
       .default_text = "0",
       .help = "for tests",
       .secret = true},
  };
  return variables;
}

class Config : public testing::Test {
 protected:
  Config() { registerVariables(testVariables()); }
  ~Config() override {
    for (const std::string& name : set_) unsetenv(name.c_str());
  }

  void set(const std::string& name, const std::string& value) {
    setenv(name.c_str(), value.c_str(), 1);
    set_.push_back(name);
  }

  static VariableState state(const std::string& name) {
    for (const VariableState& state : configStates())
      if (state.name == name) return state;
    ADD_FAILURE() << name << " is not in the table";
    return {};
  }

 private:
  std::vector<std::string> set_;
};

TEST_F(Config, GivesDefaultsWhereNothingIsSet) {
  EXPECT_EQ(configBool("NIXL_TEST_BOOL").value(), false);
  EXPECT_EQ(configInt("NIXL_TEST_INT").value(), 5);
  EXPECT_EQ(configSize("NIXL_TEST_SIZE").value(), 4096u);
  EXPECT_EQ(configDuration("NIXL_TEST_DURATION").value(), microseconds(5000));
  EXPECT_EQ(configString("NIXL_TEST_STRING").value(), "abc");
  EXPECT_EQ(configPath("NIXL_TEST_PATH").value(), "");
  EXPECT_EQ(configString("NIXL_TEST_PATH").value(), "");
  EXPECT_EQ(configEnum("NIXL_TEST_ENUM").value(), "one");
  EXPECT_FALSE(configIsSet("NIXL_TEST_INT"));
}

TEST_F(Config, ReadsTheEnvironmentWhenAsked) {
  set("NIXL_TEST_INT", "7");
  EXPECT_EQ(configInt("NIXL_TEST_INT").value(), 7);
  EXPECT_TRUE(configIsSet("NIXL_TEST_INT"));
  set("NIXL_TEST_INT", " 8\n");
  EXPECT_EQ(configInt("NIXL_TEST_INT").value(), 8);
  set("NIXL_TEST_ENUM", "TWO");
  EXPECT_EQ(configEnum("NIXL_TEST_ENUM").value(), "Two");
  set("NIXL_TEST_STRING", "");
  EXPECT_EQ(configString("NIXL_TEST_STRING").value(), "");
}

TEST_F(Config, KnowsTheWordsForYesAndNo) {
  for (const char* yes : {"y", "Y", "yes", "on", "ON", "1", "true", "True", "enable"}) {
    set("NIXL_TEST_BOOL", yes);
    EXPECT_EQ(configBool("NIXL_TEST_BOOL").value(), true) << yes;
  }
  for (const char* no : {"n", "N", "no", "off", "OFF", "0", "false", "False", "disable"}) {
    set("NIXL_TEST_BOOL", no);
    EXPECT_EQ(configBool("NIXL_TEST_BOOL").value(), false) << no;
  }
}

TEST_F(Config, KnowsUnitsOfTime) {
  for (const auto& [text, us] : std::map<std::string, int64_t>{
           {"250", 250}, {"250us", 250}, {"5 ms", 5000}, {"2S", 2000000}, {"0", 0}}) {
    set("NIXL_TEST_DURATION", text);
    EXPECT_EQ(configDuration("NIXL_TEST_DURATION").value(), microseconds(us)) << text;
  }
}

struct MalformedCase {
  const char* test_name;
  const char* name;
  const char* value;
  const char* message;
};

class MalformedConfig : public Config, public testing::WithParamInterface<MalformedCase> {};

TEST_P(MalformedConfig, IsAnErrorThatSaysWhatIsAccepted) {
  set(GetParam().name, GetParam().value);
  Status status = [](const std::string& name) {
    if (name.find("BOOL") != name.npos || name.find("FLAG") != name.npos)
      return configBool("NIXL_TEST_BOOL").status();
    if (name.find("INT") != name.npos || name.find("SECRET") != name.npos)
      return configInt(name).status();
    if (name.find("SIZE") != name.npos) return configSize(name).status();
    if (name.find("DURATION") != name.npos) return configDuration(name).status();
    return configEnum(name).status();
  }(GetParam().name);
  EXPECT_EQ(status.code(), Errc::INVALID_PARAM);
  EXPECT_EQ(status.message(), GetParam().message);
}

constexpr const char* kBoolMessage =
    "NIXL_TEST_BOOL is \"maybe\"; must be y, yes, on, 1, true, enable, n, no, off, 0, false or "
    "disable";

INSTANTIATE_TEST_SUITE_P(
    Values, MalformedConfig,
    testing::Values(
        MalformedCase{"Bool", "NIXL_TEST_BOOL", "maybe", kBoolMessage},
        MalformedCase{"Alias", "NIXL_TEST_FLAG", "2",
                      "NIXL_TEST_FLAG is \"2\"; must be y, yes, on, 1, true, enable, n, no, off, "
                      "0, false or disable"},
        MalformedCase{"Int", "NIXL_TEST_INT", "many",
                      "NIXL_TEST_INT is \"many\"; must be a whole number from 1 to 100"},
        MalformedCase{"IntEmpty", "NIXL_TEST_INT", "",
                      "NIXL_TEST_INT is \"\"; must be a whole number from 1 to 100"},
        MalformedCase{"IntTail", "NIXL_TEST_INT", "5x",
                      "NIXL_TEST_INT is \"5x\"; must be a whole number from 1 to 100"},
        MalformedCase{"IntSmall", "NIXL_TEST_INT", "0",
                      "NIXL_TEST_INT is \"0\"; must be a whole number from 1 to 100"},
        MalformedCase{"IntLarge", "NIXL_TEST_INT", "99999999999999999999",
                      "NIXL_TEST_INT is \"99999999999999999999\"; must be a whole number from 1 "
                      "to 100"},
        MalformedCase{"Size", "NIXL_TEST_SIZE", "4QB",
                      "NIXL_TEST_SIZE is \"4QB\"; must be a number of bytes, such as 4096, 64KB "
                      "or 1.5GB"},
        MalformedCase{"Duration", "NIXL_TEST_DURATION", "5 weeks",
                      "NIXL_TEST_DURATION is \"5 weeks\"; must be a time, such as 250us, 5ms or "
                      "2s"},
        MalformedCase{"DurationOverflow", "NIXL_TEST_DURATION", "9223372036854775807s",
                      "NIXL_TEST_DURATION is \"9223372036854775807s\"; must be a time, such as "
                      "250us, 5ms or 2s"},
        MalformedCase{"Enum", "NIXL_TEST_ENUM", "three",
                      "NIXL_TEST_ENUM is \"three\"; must be one or Two"},
        MalformedCase{"Secret", "NIXL_TEST_SECRET", "hunter2",
                      "NIXL_TEST_SECRET is \"***\"; must be a whole number of at least 0"}),
    [](const auto& info) { return std::string(info.param.test_name); });

TEST_F(Config, ReadsAliases) {
  set("NIXL_TEST_FLAG", "on");
  EXPECT_EQ(configBool("NIXL_TEST_BOOL").value(), true);
  EXPECT_EQ(state("NIXL_TEST_BOOL").source, "NIXL_TEST_FLAG");
}

TEST_F(Config, AcceptsTwoNamesThatMeanTheSame) {
  set("NIXL_TEST_FLAG", "on");
  set("NIXL_TEST_BOOL", "1");
  EXPECT_EQ(configBool("NIXL_TEST_BOOL").value(), true);
  EXPECT_EQ(state("NIXL_TEST_BOOL").source, "NIXL_TEST_BOOL");
}

TEST_F(Config, RefusesTwoNamesThatDiffer) {
  set("NIXL_TEST_FLAG", "on");
  set("NIXL_TEST_BOOL", "off");
  Result<bool> value = configBool("NIXL_TEST_BOOL");
  ASSERT_FALSE(value.has_value());
  EXPECT_EQ(value.error().code(), Errc::INVALID_PARAM);
  EXPECT_EQ(value.error().message(),
            "NIXL_TEST_BOOL is \"off\" and NIXL_TEST_FLAG is \"on\", which are two names of one "
            "setting; unset one of them");
}

TEST_F(Config, ShowsWhatIsInForce) {
  set("NIXL_TEST_INT", "7");
  VariableState shown = state("NIXL_TEST_INT");
  EXPECT_EQ(shown.type, "int");
  EXPECT_EQ(shown.default_value, "5");
  EXPECT_EQ(shown.value, "7");
  EXPECT_EQ(shown.source, "NIXL_TEST_INT");
  EXPECT_EQ(shown.help, "for tests");
  EXPECT_EQ(shown.problem, "");
  EXPECT_EQ(state("NIXL_TEST_SIZE").source, "default");
  EXPECT_EQ(state("NIXL_TEST_ENUM").type, "one|Two");

  set("NIXL_TEST_INT", "seven");
  EXPECT_NE(state("NIXL_TEST_INT").problem, "");

  std::vector<VariableState> all = configStates();
  EXPECT_TRUE(std::is_sorted(all.begin(), all.end(),
                             [](const auto& a, const auto& b) { return a.name < b.name; }));
}

TEST_F(Config, NeverShowsASecret) {
  set("NIXL_TEST_SECRET", "12345");
  EXPECT_EQ(configInt("NIXL_TEST_SECRET").value(), 12345);
  EXPECT_EQ(state("NIXL_TEST_SECRET").value, "***");
}

TEST_F(Config, RegistersANameOnce) {
  size_t before = configStates().size();
  registerVariables(testVariables());
  EXPECT_EQ(configStates().size(), before);

  std::vector<Variable> other = {{.name = "NIXL_TEST_INT", .default_text = "x"}};
  testing::internal::CaptureStderr();
  registerVariables(other);
  EXPECT_NE(testing::internal::GetCapturedStderr().find("NIXL_TEST_INT"), std::string::npos);
  EXPECT_EQ(configInt("NIXL_TEST_INT").value(), 5);
}

TEST_F(Config, HasDefaultsThatItAccepts) {
  for (const VariableState& variable : configStates()) {
    if (variable.source == "default") {
      EXPECT_EQ(variable.problem, "") << variable.name;
    }
    EXPECT_NE(variable.help, "") << variable.name;
    EXPECT_EQ(variable.name.rfind("NIXL_", 0), 0u) << variable.name;
  }
}

TEST_F(Config, HasTheVariablesOfTheLibrary) {
  EXPECT_EQ(state("NIXL_LOG_LEVEL").default_value, "WARN");
  EXPECT_EQ(state("NIXL_INLINE_US").default_value, "250");
  EXPECT_EQ(state("NIXL_NOTIF_LIMIT").default_value, "64MB");
  EXPECT_EQ(state("NIXL_STALL_MS").default_value, "30000");
  EXPECT_EQ(state("NIXL_ETCD_NAMESPACE").default_value, "/nixl/agents/");
  EXPECT_EQ(state("NIXL_ETCD_PREFIX").default_value, "/nixl");
  EXPECT_EQ(state("NIXL_TELEMETRY_ENABLE").aliases,
            std::vector<std::string>{"NIXL_ENABLE_TELEMETRY"});
}

TEST(ConfigDeathTest, NamesAVariableThatNobodyKnows) {
#ifdef NDEBUG
  EXPECT_EQ(configInt("NIXL_NO_SUCH_THING").error().code(), Errc::NOT_FOUND);
  EXPECT_EQ(configBool("NIXL_INLINE_US").error().code(), Errc::MISMATCH);
#else
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_DEATH(static_cast<void>(configInt("NIXL_NO_SUCH_THING")), "NIXL_NO_SUCH_THING is not in");
  EXPECT_DEATH(static_cast<void>(configBool("NIXL_INLINE_US")),
               "has type int and was read as bool");
#endif
}

struct EndpointCase {
  const char* text;
  bool one, several;  // whether it is an ENDPOINT, and whether it is ENDPOINTS
};

TEST_F(Config, KnowsEndpoints) {
  EXPECT_EQ(configEndpoints("NIXL_TEST_ENDPOINT").value(), "");
  EXPECT_EQ(configEndpoints("NIXL_TEST_ENDPOINTS").value(), "");
  for (const EndpointCase& c : {
           EndpointCase{"host:80", true, true},       {"10.0.0.1:65535", true, true},
           {"[::1]:80", true, true},                  {"::1:80", true, true},
           {" host:80 ", true, true},                 {"host", false, true},
           {"[::1]", false, true},                    {"http://host:80", false, true},
           {"HTTPS://host", false, true},             {"http://host:80/", false, true},
           {"a:1,b:2;https://c:3", false, true},      {"", false, false},
           {" ", false, false},                       {"host:", false, false},
           {":80", false, false},                     {"host:0", false, false},
           {"host:65536", false, false},              {"host:+1", false, false},
           {"host: 1", false, false},                 {"host:1x", false, false},
           {"ftp://host:1", false, false},            {"http://", false, false},
           {"a:1,,b:2", false, false},                {"a:1,", false, false},
           {"a b:1", false, false},                   {"http://host:1/path", false, false},
           {"[]", false, false},
       }) {
    set("NIXL_TEST_ENDPOINT", c.text);
    set("NIXL_TEST_ENDPOINTS", c.text);
    EXPECT_EQ(configEndpoints("NIXL_TEST_ENDPOINT").has_value(), c.one) << '"' << c.text << '"';
    EXPECT_EQ(configEndpoints("NIXL_TEST_ENDPOINTS").has_value(), c.several)
        << '"' << c.text << '"';
  }
  EXPECT_EQ(state("NIXL_TEST_ENDPOINT").type, "endpoint");
  EXPECT_NE(state("NIXL_TEST_ENDPOINTS").problem, "");
}

}  // namespace
}  // namespace nixl::base
