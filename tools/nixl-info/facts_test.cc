#include "nixl-info/facts.h"

#include <gtest/gtest.h>

#include <future>
#include <stdexcept>
#include <thread>

#include "nixl-info/probes.h"

namespace nixl::info {
namespace {

using std::chrono::milliseconds;

TEST(Gather, KeepsTheOrderOfTheProbesAndWhatTheyFound) {
  const auto sections = gather({{"slow", [](Section& out) {
                                   std::this_thread::sleep_for(milliseconds(20));
                                   out.add("a", "1");
                                 }},
                                {"quick", [](Section& out) { out.note("b", "2", "do this"); }}},
                               std::chrono::seconds(60));
  ASSERT_EQ(sections.size(), 2u);
  EXPECT_EQ(sections[0].name, "slow");
  ASSERT_EQ(sections[0].facts.size(), 1u);
  EXPECT_EQ(sections[1].facts.at(0).hint, "do this");
  EXPECT_FALSE(sections[1].facts.at(0).wrong);
}

TEST(Gather, DoesNotWaitForAProbeThatHangs) {
  auto release = std::make_shared<std::promise<void>>();
  auto released = std::make_shared<std::shared_future<void>>(release->get_future().share());
  const auto sections = gather({{"stuck", [released](Section& out) {
                                   out.add("before", "found");
                                   released->wait();
                                 }}},
                               milliseconds(50));
  ASSERT_EQ(sections[0].facts.size(), 2u);
  EXPECT_EQ(sections[0].facts[0].value, "found");
  EXPECT_NE(sections[0].facts[1].value.find("no answer within 50 ms"), std::string::npos);
  release->set_value();
}

TEST(Gather, TellsOfAProbeThatThrows) {
  const auto sections =
      gather({{"broken", [](Section&) { throw std::runtime_error("no such thing"); }}},
             milliseconds(60000));
  EXPECT_EQ(sections[0].facts.at(0).value, "no such thing");
}

TEST(FactsAsJson, NumberNamesThatComeAgain) {
  const auto json = toJson({{"net", {{"eth0", "up"}, {"eth0", "down", "plug it in", true}}}});
  EXPECT_EQ(json["net"]["eth0"]["value"], "up");
  EXPECT_FALSE(json["net"]["eth0"].contains("hint"));
  EXPECT_EQ(json["net"]["eth0 (2)"]["hint"], "plug it in");
  EXPECT_EQ(json["net"]["eth0 (2)"]["wrong"], true);
}

struct ShownCase {
  const char *name, *value, *shown;
};

TEST(ShownValue, HidesSecretsAndNothingElse) {
  for (const ShownCase& c : {
           ShownCase{"NIXL_ETCD_PASSWORD", "abc", "set (hidden)"},
           ShownCase{"aws_secret_access_key", "abc", "set (hidden)"},
           ShownCase{"NIXL_API_TOKEN", "abc", "set (hidden)"},
           ShownCase{"NIXL_AUTH_KEY_FILE", "/etc/key", "/etc/key"},
           ShownCase{"NIXL_ETCD_ENDPOINTS", "http://u:p@h:1,https://v@g:2/x",
                     "http://(hidden)@h:1,https://(hidden)@g:2/x"},
           ShownCase{"NIXL_ETCD_ENDPOINTS", "http://h:1,g:2", "http://h:1,g:2"},
           ShownCase{"http_proxy", "http://u:p@h", "http://(hidden)@h"},
           ShownCase{"NIXL_PLUGIN_DIR", "/a@b", "/a@b"},
       })
    EXPECT_EQ(shownValue(c.name, c.value), c.shown) << c.name << "=" << c.value;
}

TEST(CloseTo, FindsWhatWasMeant) {
  const std::vector<std::string> known = {"NIXL_PLUGIN_DIR", "NIXL_LOG_LEVEL", "NIXL_STORE"};
  EXPECT_EQ(closeTo("NIXL_PLUGINS_DIR", known), std::vector<std::string>{"NIXL_PLUGIN_DIR"});
  EXPECT_EQ(closeTo("NIXL_LOGLEVEL", known), std::vector<std::string>{"NIXL_LOG_LEVEL"});
  EXPECT_TRUE(closeTo("NIXL_SOMETHING_ELSE", known).empty());
}

}  // namespace
}  // namespace nixl::info
