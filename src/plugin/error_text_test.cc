#include "plugin/error_text.h"

#include <gtest/gtest.h>

#include <cstring>
#include <stdexcept>

namespace nixl::plugin {
namespace {

struct TextCase {
  const char* name;
  std::string_view raw;
  std::string_view shown;
};

class Readable : public testing::TestWithParam<TextCase> {};

TEST_P(Readable, KeepsTextAndReplacesTheRest) {
  EXPECT_EQ(readable(GetParam().raw), GetParam().shown);
}

INSTANTIATE_TEST_SUITE_P(
    Texts, Readable,
    testing::Values(
        TextCase{"Empty", "", ""}, TextCase{"Plain", "no route", "no route"},
        TextCase{"Umlaut", "gr\xC3\xBC\xC3\x9F", "gr\xC3\xBC\xC3\x9F"},
        TextCase{"FourBytes", "\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80"},
        TextCase{"NewLine", "one\ntwo\tthree", "one two three"},
        TextCase{"Escape", "\x1b[31mred", "?[31mred"}, TextCase{"Delete", "\x7f", "?"},
        TextCase{"LoneContinuation", "a\x80z", "a?z"}, TextCase{"CutShort", "a\xE2\x82", "a??"},
        TextCase{"Overlong", "\xC0\xAF", "??"}, TextCase{"OverlongOfThree", "\xE0\x80\xAF", "???"},
        TextCase{"Surrogate", "\xED\xA0\x80", "???"},
        TextCase{"BeyondTheLast", "\xF4\x90\x80\x80", "????"}, TextCase{"Never", "\xFF\xFE", "??"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(ErrcOf, KnowsTheNumbersThatHaveANameAndCallsTheRestBackend) {
  EXPECT_EQ(errcOf(-4), Errc::NOT_FOUND);
  EXPECT_EQ(errcOf(-8), Errc::UNKNOWN);
  EXPECT_EQ(errcOf(-23), Errc::NOT_QUIESCED);
  EXPECT_EQ(errcOf(-13), Errc::BACKEND);
  EXPECT_EQ(errcOf(-1000), Errc::BACKEND);
  EXPECT_EQ(errcOf(INT32_MIN), Errc::BACKEND);
  EXPECT_EQ(errcOf(1), Errc::BACKEND);  // no failure, and so none to report
}

TEST(ErrorText, IsTheWordsOfThePlugin) {
  ErrorText error;
  std::snprintf(error.raw()->text, error.raw()->capacity, "no route to host");
  error.raw()->native_code = -25;
  const Status status = error.status("engine X: connect", -10);
  EXPECT_EQ(status.code(), Errc::REMOTE_DISCONNECT);
  EXPECT_EQ(status.message(), "engine X: connect: no route to host (code -25)");
}

TEST(ErrorText, SaysWhenThereAreNoWords) {
  ErrorText error;
  EXPECT_EQ(error.status("engine X: post", -3).message(),
            "engine X: post: the plugin gave no reason");
}

TEST(ErrorText, SaysWhenTheNumberMeansNothing) {
  ErrorText error;
  const Status status = error.status("engine X: post", -1234);
  EXPECT_EQ(status.code(), Errc::BACKEND);
  EXPECT_NE(status.message().find("-1234"), std::string::npos) << status.message();
}

TEST(ErrorText, SurvivesAPluginThatFillsItWithoutEnd) {
  ErrorText error;
  std::memset(error.raw()->text, 'x', error.raw()->capacity);
  const size_t capacity = error.raw()->capacity;
  // One that tampers with the struct itself is not followed.
  error.raw()->text = nullptr;
  error.raw()->capacity = 1u << 30;
  EXPECT_EQ(error.words(), std::string(capacity, 'x'));
}

TEST(ThrownStatus, NamesWhatWasThrown) {
  Status status;
  try {
    throw std::runtime_error("oh");
  } catch (...) {
    status = thrownStatus("engine X: post");
  }
  EXPECT_EQ(status.code(), Errc::BACKEND);
  EXPECT_EQ(status.message(),
            "engine X: post: an exception left the plugin, which must not happen: oh");
  try {
    throw 7;
  } catch (...) {
    status = thrownStatus("engine X: post");
  }
  EXPECT_EQ(status.message(),
            "engine X: post: an exception left the plugin, which must not happen");
}

}  // namespace
}  // namespace nixl::plugin
