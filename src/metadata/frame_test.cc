#include "metadata/frame.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "base/bytes.h"

namespace nixl::metadata {
namespace {

using namespace std::string_literals;

std::string frame(std::string_view body) {
  base::ByteWriter out;
  out.u64(body.size());
  out.raw(body);
  return out.take();
}

// The bodies in a stream that arrives in pieces of at most `piece` bytes.
std::vector<std::string> bodies(std::string_view stream, size_t piece) {
  FrameReader reader(1 << 20);
  std::vector<std::string> found;
  while (!stream.empty()) {
    std::span<char> space = reader.space();
    size_t n = std::min({space.size(), stream.size(), piece});
    std::memcpy(space.data(), stream.data(), n);
    stream.remove_prefix(n);
    EXPECT_TRUE(reader.filled(n).ok());
    if (!reader.complete()) continue;
    found.emplace_back(reader.body());
    reader.next();
  }
  EXPECT_FALSE(reader.started());
  return found;
}

TEST(FrameReader, FindsBodiesHoweverTheyArrive) {
  std::vector<std::string> sent = {"", "a", "NIXLCOMM:SEND", std::string(200'000, 'x'), "", "end"};
  std::string stream;
  for (const std::string& body : sent) stream += frame(body);
  for (size_t piece : {1, 3, 7, 8, 9, 4096, 1 << 20}) EXPECT_EQ(bodies(stream, piece), sent);
}

TEST(FrameReader, RefusesALengthBeyondItsLimit) {
  FrameReader reader(1000);
  std::string head = frame(std::string(1001, 'x')).substr(0, 8);
  std::memcpy(reader.space().data(), head.data(), 8);
  Status status = reader.filled(8);
  EXPECT_EQ(status.code(), Errc::LIMIT);
  EXPECT_NE(status.message().find("1001 bytes"), std::string::npos) << status.message();
}

TEST(FrameReader, TakesMemoryOnlyForWhatHasArrived) {
  FrameReader reader(uint64_t{1} << 40);
  char head[8];
  base::storeLittle(head, uint64_t{1} << 40);
  std::memcpy(reader.space().data(), head, 8);
  ASSERT_TRUE(reader.filled(8).ok());
  uint64_t arrived = 0;
  for (int i = 0; i < 1000; ++i) {
    size_t space = reader.space().size();
    ASSERT_GT(space, 0u);
    ASSERT_LE(space, std::max<uint64_t>(64 << 10, arrived));
    ASSERT_TRUE(reader.filled(std::min<size_t>(space, 1000)).ok());
    arrived += std::min<size_t>(space, 1000);
  }
  EXPECT_FALSE(reader.complete());
}

struct CommandCase {
  const char* name;
  std::string body;
  std::optional<Word> word;
  std::string payload;
};

class ParseCommand : public testing::TestWithParam<CommandCase> {};

TEST_P(ParseCommand, GoesByThePrefixAlone) {
  std::optional<Command> command = parseCommand(GetParam().body);
  ASSERT_EQ(command.has_value(), GetParam().word.has_value());
  if (!command) return;
  EXPECT_EQ(command->word, *GetParam().word);
  EXPECT_EQ(command->payload, GetParam().payload);
}

INSTANTIATE_TEST_SUITE_P(
    Bodies, ParseCommand,
    testing::Values(CommandCase{"Empty", "", {}, ""}, CommandCase{"Short", "NIX", {}, ""},
                    CommandCase{"PrefixOnly", "NIXLCOMM:", {}, ""},
                    CommandCase{"Unknown", "NIXLCOMM:WHAT", {}, ""},
                    CommandCase{"LowerCase", "NIXLCOMM:load", {}, ""},
                    CommandCase{"TextBefore", "x NIXLCOMM:LOADy", {}, ""},
                    CommandCase{"Load", "NIXLCOMM:LOADa\0b"s, Word::LOAD, "a\0b"s},
                    CommandCase{"LoadNothing", "NIXLCOMM:LOAD", Word::LOAD, ""},
                    CommandCase{"LoadOfTheText", "NIXLCOMM:LOADx|NIXLCOMM:INVLy", Word::LOAD,
                                "x|NIXLCOMM:INVLy"},
                    CommandCase{"Send", "NIXLCOMM:SEND", Word::SEND, ""},
                    CommandCase{"Invalidate", "NIXLCOMM:INVLagent", Word::INVL, "agent"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(AppendFrame, WritesTheBytesOfTheFieldsProtocol) {
  std::string out = "before";
  appendFrame(out, Word::INVL, "agent");
  EXPECT_EQ(out, "before\x12\0\0\0\0\0\0\0NIXLCOMM:INVLagent"s);
}

}  // namespace
}  // namespace nixl::metadata
